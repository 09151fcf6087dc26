/* ANCHOR: all */
#include <ctype.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SIZE = 0x8000, START = 0x1000, BUFFER = 0x2000 };

/* ANCHOR: code */
static const uint8_t code[] = {
	0xba, 0x42, 0x00,			/* mov dx, 0x42 */
	0xbf, 0x00, 0x20,			/* mov di, 0x2000 */
	0xb9, 0x06, 0x00,			/* mov cx, 6 */
	0xf3, 0x6c,				/* rep insb: 6 bytes from port 0x42 to 0x2000 */
	0xbe, 0x00, 0x20,			/* mov si, 0x2000 */
	0xb9, 0x03, 0x00,			/* mov cx, 3 */
	0xf3, 0x6f,				/* rep outsw: 3 times 2 bytes from 0x2000 to port 0x42 */
	0x66, 0xa1, 0x00, 0x20,			/* mov eax, [0x2000]: 4 bytes of memory */
	0x66, 0xa3, 0x04, 0x90,			/* mov [0x9004], eax: no memory is there */
	0xa1, 0x06, 0x90,			/* mov ax, [0x9006] */
	0xf4,					/* hlt */
};
/* ANCHOR_END: code */

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* ANCHOR: handle */
static void print_bytes(const uint8_t *data, size_t length)
{
	for (size_t i = 0; i < length; ++i)
		printf(isalpha(data[i]) ? " '%c'" : " %02x", data[i]);
	printf("\n");
}

/* The answer to each read: the next letter for a port, and numbers for an address. */
static void handle(struct kvm_run *run)
{
	static uint8_t next = 'a';
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	if (run->exit_reason == KVM_EXIT_IO) {
		size_t length = (size_t)run->io.size * run->io.count;
		int is_read = run->io.direction == KVM_EXIT_IO_IN;

		for (size_t i = 0; is_read && i < length; ++i)
			data[i] = next++;
		printf("%s port 0x%x, size %u, count %u:", is_read ? "read from" : "write to", run->io.port, run->io.size,
		       run->io.count);
		print_bytes(data, length);
	} else {
		if (!run->mmio.is_write)
			memcpy(run->mmio.data, "\x11\x22\x33\x44\x55\x66\x77\x88", 8);
		printf("%s 0x%llx, len %u:", run->mmio.is_write ? "store to" : "load from", run->mmio.phys_addr, run->mmio.len);
		print_bytes(run->mmio.data, run->mmio.len);
	}
}
/* ANCHOR_END: handle */

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	uint8_t *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	check(vm, "KVM_CREATE_VM");
	check(memory == MAP_FAILED ? -1 : 0, "mmap");
	struct kvm_userspace_memory_region region = { .memory_size = SIZE, .userspace_addr = (uintptr_t)memory };

	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	check(vcpu, "KVM_CREATE_VCPU");
	check(size, "KVM_GET_VCPU_MMAP_SIZE");
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	check(run == MAP_FAILED ? -1 : 0, "mmap");
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = START, .rflags = 2 };

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	memcpy(memory + START, code, sizeof(code));
	for (;;) {
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		if (run->exit_reason != KVM_EXIT_IO && run->exit_reason != KVM_EXIT_MMIO)
			break;
		handle(run);
	}
	check(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("reason %u, the buffer has %.6s, AX is 0x%llx\n", run->exit_reason, memory + BUFFER, regs.rax & 0xffff);
	return 0;
}
/* ANCHOR_END: all */
