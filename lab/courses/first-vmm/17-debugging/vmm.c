// Chapter 17: debugging. Usage: ./vmm IMAGE [TEXT]
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. It reads TEXT byte by byte: bit 0 of port 0x10 says that a byte is there, and port 0x11 gives the next one,
// 0 at the end.
//
// This program is complete, but it has two mistakes. Find them.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM_SIZE = 0x200000, ENTRY = 0x1000, STACK = 0x100000, PML4 = 0x1f0000, PDPT = 0x1f1000, PD = 0x1f2000 };
enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
enum { STATUS = 0x10, DATA = 0x11, PRINT = 0xe9 };

static uint8_t *ram;
static int vcpu;
static struct kvm_run *run;
static const char *text = "";

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void create_machine(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
}

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	need(file != NULL, path);
	size_t length = fread(ram + ENTRY, 1, STACK - 0x1000 - ENTRY, file);
	need(length > 0, path);
	fclose(file);
}

// One table of each level: the first GiB is mapped one to one, with pages of 2 MiB.
static void set_page_tables(void)
{
	uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = (uint64_t *)(ram + PDPT), *pd = (uint64_t *)(ram + PD);

	pml4[0] = PDPT | WRITABLE | PRESENT;
	pdpt[0] = PD | WRITABLE | PRESENT;
	for (uint64_t i = 0; i < 512; i++)
		//{
		pd[i] = i << 21 | LARGE | WRITABLE | PRESENT;
		//= pd[i] = i << 21 | WRITABLE | PRESENT;
		//}
}

static void set_registers(void)
{
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 0x80000011;
	sregs.efer = 1 << 8 | 1 << 10;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rsp = STACK, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

// The value of a read from a port.
static uint8_t port_read(uint16_t port)
{
	if (port == STATUS)
		return 1;
	if (port == DATA && *text)
		return *text++;
	return 0;
}

static void port_access(void)
{
	size_t length = (size_t)run->io.size * run->io.count;
	uint8_t data[4096];

	if (length > sizeof(data)) {
		fprintf(stderr, "vmm: %zu bytes at once\n", length);
		exit(1);
	}
	memcpy(data, (uint8_t *)run + run->io.data_offset, length);
	if (run->io.direction == KVM_EXIT_IO_IN) {
		for (size_t i = 0; i < length; i++)
			data[i] = port_read(run->io.port);
		//{
		memcpy((uint8_t *)run + run->io.data_offset, data, length);
		//}
	} else if (run->io.port == PRINT) {
		fwrite(data, 1, length, stdout);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2 && argc != 3) {
		fprintf(stderr, "usage: ./vmm IMAGE [TEXT]\n");
		return 1;
	}
	if (argc == 3)
		text = argv[2];
	setvbuf(stdout, NULL, _IOLBF, 0);
	create_machine();
	load(argv[1]);
	set_page_tables();
	set_registers();
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port_access();
			break;
		case KVM_EXIT_HLT:
			return 0;
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			return 2;
		}
	}
}
