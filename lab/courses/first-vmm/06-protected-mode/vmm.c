/*
 * Chapter 6: a guest in protected mode.
 *
 *   ./vmm IMAGE           loads the file at 0x1000, and runs it there as 32-bit code
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MEMORY_SIZE = 0x200000, ENTRY = 0x1000, DEBUG_PORT = 0xe9 };

struct vm {
	int kvm, fd;
	uint8_t *memory;
};

struct vcpu {
	int fd;
	struct kvm_run *run;
};

/* Ends the program with a message if a call has failed. */
static void check(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *map(size_t size, int flags, int fd)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(memory == MAP_FAILED ? -1 : 0, "mmap");
	return memory;
}

/* Makes a VM with MEMORY_SIZE bytes at the guest physical address 0. */
static struct vm create_vm(void)
{
	struct vm vm;

	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(vm.kvm, "/dev/kvm");
	vm.fd = ioctl(vm.kvm, KVM_CREATE_VM, 0);
	check(vm.fd, "KVM_CREATE_VM");
	vm.memory = map(MEMORY_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE, .userspace_addr = (uintptr_t)vm.memory };

	check(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	return vm;
}

static struct vcpu create_vcpu(const struct vm *vm)
{
	struct vcpu vcpu;
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	check(size, "KVM_GET_VCPU_MMAP_SIZE");
	vcpu.fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	check(vcpu.fd, "KVM_CREATE_VCPU");
	vcpu.run = map(size, MAP_SHARED, vcpu.fd);
	return vcpu;
}

enum { CR0_PE = 1 };
enum { TYPE_CODE = 11, TYPE_DATA = 3 };

/* Copies the file into the memory of the guest, from ENTRY on. */
static void load(const struct vm *vm, const char *name)
{
	FILE *file = fopen(name, "rb");

	check(file ? 0 : -1, name);
	size_t size = fread(vm->memory + ENTRY, 1, MEMORY_SIZE - ENTRY, file);

	check(size == 0 && ferror(file) ? -1 : 0, name);
	fclose(file);
}

/* A segment from 0 to 4 GiB. The type says if it holds code or data. */
static struct kvm_segment flat_segment(uint16_t selector, uint8_t type)
{
	struct kvm_segment segment = { .selector = selector, .type = type };

	//{
	//= /* TODO: set present and s to 1. Set db to 1 for 32-bit code. The base is 0. */
	//= /* TODO: set limit to 0xffffffff, and g to 1, because the limit counts pages. */
	segment.present = 1;
	segment.s = 1;
	segment.db = 1;
	segment.base = 0;
	segment.limit = 0xffffffff;
	segment.g = 1;
	//}
	return segment;
}

/* Lets the vCPU start in protected mode. */
static void set_protected_mode(const struct vcpu *vcpu)
{
	struct kvm_sregs sregs;

	check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	//{
	//= (void)flat_segment;
	//= /* TODO: set sregs.cs to a flat segment with the selector 8 and TYPE_CODE. */
	sregs.cs = flat_segment(8, TYPE_CODE);
	//= /* TODO: set ds, es, fs, gs and ss to a flat segment with the selector 16 and TYPE_DATA. */
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = flat_segment(16, TYPE_DATA);
	//= /* TODO: set the bit CR0_PE in sregs.cr0. Keep the other bits. */
	sregs.cr0 |= CR0_PE;
	//}
	check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

static void set_registers(const struct vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2, .rsp = MEMORY_SIZE };

	check(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Prints what the guest writes to the debug port. Other ports have no device. */
static void access_port(const struct kvm_run *run)
{
	const uint8_t *data = (const uint8_t *)run + run->io.data_offset;

	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != DEBUG_PORT) {
		fprintf(stderr, "vmm: port 0x%x has no device\n", run->io.port);
		exit(1);
	}
	fwrite(data, run->io.size, run->io.count, stdout);
}

/* Runs the guest until it halts. */
static void run(const struct vcpu *vcpu)
{
	for (;;) {
		check(ioctl(vcpu->fd, KVM_RUN, 0), "KVM_RUN");
		switch (vcpu->run->exit_reason) {
		case KVM_EXIT_IO:
			access_port(vcpu->run);
			break;
		case KVM_EXIT_HLT:
			return;
		default:
			fprintf(stderr, "vmm: unexpected exit: reason %u\n", vcpu->run->exit_reason);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: vmm IMAGE\n");
		return 2;
	}
	struct vm vm = create_vm();
	struct vcpu vcpu = create_vcpu(&vm);

	load(&vm, argv[1]);
	set_protected_mode(&vcpu);
	set_registers(&vcpu);
	run(&vcpu);
	return 0;
}
