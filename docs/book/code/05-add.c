/* ANCHOR: all */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SIZE = 0x10000, START = 0x2000 };

/* ANCHOR: code */
static const uint8_t code[] = {
	0xb8, 0x15, 0x00,       /* mov ax, 21 */
	0x01, 0xd8,             /* add ax, bx */
	0xf4,                   /* hlt */
};
/* ANCHOR_END: code */

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

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
	/* ANCHOR: start */
	memcpy(memory + START, code, sizeof(code));

	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
#ifndef FORGET_CS
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
#endif
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");

	struct kvm_regs regs = { .rip = START, .rflags = 2, .rbx = 21 };

	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	/* ANCHOR_END: start */
	/* ANCHOR: run */
	check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	if (run->exit_reason != KVM_EXIT_HLT) {
		fprintf(stderr, "the guest did not halt: reason %u\n", run->exit_reason);
		return 1;
	}
	check(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("AX is %llu, RIP is 0x%llx\n", regs.rax, regs.rip);
	/* ANCHOR_END: run */
	return 0;
}
/* ANCHOR_END: all */
