/*
 * Chapter 5: a guest in real mode.
 *
 *   ./vmm IMAGE           loads the file at 0x1000, and runs it there
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

enum { MEMORY_SIZE = 0x100000, ENTRY = 0x1000, DEBUG_PORT = 0xe9 };

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

/* Copies the file into the memory of the guest, from ENTRY on. */
static void load(const struct vm *vm, const char *name)
{
	FILE *file = fopen(name, "rb");

	check(file ? 0 : -1, name);
	//{
	//= (void)vm;
	//= /* TODO: read the file into vm->memory + ENTRY with fread. There is room for MEMORY_SIZE - ENTRY bytes. */
	size_t size = fread(vm->memory + ENTRY, 1, MEMORY_SIZE - ENTRY, file);

	check(size == 0 && ferror(file) ? -1 : 0, name);
	//}
	fclose(file);
}

/* Lets the vCPU start at ENTRY in real mode. */
static void set_real_mode(const struct vcpu *vcpu)
{
	struct kvm_sregs sregs;

	check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	//{
	//= /* TODO: set the base and the selector of sregs.cs to 0. */
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	//}
	check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");

	//{
	//= /* TODO: fill a struct kvm_regs, and set it with KVM_SET_REGS: rip is ENTRY, rflags is 2, rsp is ENTRY, the rest is 0. */
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2, .rsp = ENTRY };

	check(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	//}
}

/* Prints what the guest writes to the debug port. Other ports have no device. */
static void access_port(const struct kvm_run *run)
{
	//{
	//= (void)run;
	//= /* TODO: run->io describes the access. If its direction is not KVM_EXIT_IO_OUT, or its port is not DEBUG_PORT, print a
	//=  * message to stderr, and end the program with status 1. */
	const uint8_t *data = (const uint8_t *)run + run->io.data_offset;

	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != DEBUG_PORT) {
		fprintf(stderr, "vmm: port 0x%x has no device\n", run->io.port);
		exit(1);
	}
	//= /* TODO: the data stand run->io.data_offset bytes after the start of run: run->io.count elements of run->io.size bytes.
	//=  * Print all of them to stdout with fwrite. */
	fwrite(data, run->io.size, run->io.count, stdout);
	//}
}

/* Runs the guest until it halts. */
static void run(const struct vcpu *vcpu)
{
	//{
	//= (void)vcpu;
	//= (void)access_port;
	//= /* TODO: call KVM_RUN again and again. After each call, look at vcpu->run->exit_reason:
	//=  * - KVM_EXIT_IO: call access_port(vcpu->run);
	//=  * - KVM_EXIT_HLT: return;
	//=  * - anything else: print a message with the reason to stderr, and end the program with status 1. */
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
	//}
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
	set_real_mode(&vcpu);
	run(&vcpu);
	return 0;
}
