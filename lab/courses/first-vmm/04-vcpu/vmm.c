/*
 * Chapter 4: virtual processors, and the memory that each of them shares with KVM.
 *
 *   ./vmm COUNT           makes COUNT vCPUs
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

static void fail(const char *subject)
{
	fprintf(stderr, "vmm: %s: %s\n", subject, strerror(errno));
	exit(1);
}

static int open_kvm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		fail("/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		fprintf(stderr, "vmm: /dev/kvm is not KVM with version %d\n", KVM_API_VERSION);
		exit(1);
	}
	return kvm;
}

static int create_vm(int kvm)
{
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0)
		fail("KVM_CREATE_VM");
	return vm;
}

/* A vCPU: its descriptor, and the memory that it shares with KVM. */
struct vcpu {
	int fd;
	struct kvm_run *run;
};

/* Makes the vCPU with this number, and maps its struct kvm_run. */
static struct vcpu create_vcpu(int kvm, int vm, int number)
{
	struct vcpu vcpu = { .fd = -1, .run = NULL };

	//{
	//= (void)kvm, (void)vm, (void)number;
	//= /* TODO: call KVM_CREATE_VCPU on the VM with the number of the vCPU. Put the descriptor into vcpu.fd. */
	vcpu.fd = ioctl(vm, KVM_CREATE_VCPU, number);
	if (vcpu.fd < 0)
		fail("KVM_CREATE_VCPU");
	//= /* TODO: ask /dev/kvm for the size of the shared memory: KVM_GET_VCPU_MMAP_SIZE. */
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (size < 0)
		fail("KVM_GET_VCPU_MMAP_SIZE");
	//= /* TODO: map that many bytes of vcpu.fd with MAP_SHARED, for reading and writing. Put the address into vcpu.run. */
	vcpu.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
	if (vcpu.run == MAP_FAILED)
		fail("mmap of the vCPU");
	//}
	return vcpu;
}

/* Prints where the vCPU would execute its first instruction. */
static void print_start(const struct vcpu *vcpu, int number)
{
	struct kvm_regs regs = { 0 };
	struct kvm_sregs sregs = { 0 };

	//{
	//= (void)vcpu;
	//= /* TODO: read the registers of the vCPU with KVM_GET_REGS and KVM_GET_SREGS. */
	if (ioctl(vcpu->fd, KVM_GET_REGS, &regs) < 0)
		fail("KVM_GET_REGS");
	if (ioctl(vcpu->fd, KVM_GET_SREGS, &sregs) < 0)
		fail("KVM_GET_SREGS");
	//}
	printf("vCPU %d starts at 0x%llx\n", number, sregs.cs.base + regs.rip);
}

/* Enters the vCPU, and leaves it at once: the guest executes nothing. */
static void enter_and_leave(struct vcpu *vcpu, int number)
{
	//{
	//= (void)vcpu, (void)number;
	//= /* TODO: set the field immediate_exit of the shared memory to 1. */
	vcpu->run->immediate_exit = 1;
	//= /* TODO: call KVM_RUN. It returns -1, and errno is EINTR. Then print "vCPU 0 left at once" with the vCPU's number. */
	//= /* TODO: if it returns something else, print a message to stderr, and end with status 1. */
	if (ioctl(vcpu->fd, KVM_RUN, 0) != -1 || errno != EINTR) {
		fprintf(stderr, "vmm: vCPU %d did not leave at once\n", number);
		exit(1);
	}
	printf("vCPU %d left at once\n", number);
	//}
}

int main(int argc, char **argv)
{
	int count = argc > 1 ? atoi(argv[1]) : 1;
	int kvm = open_kvm();
	int vm = create_vm(kvm);

	for (int number = 0; number < count; ++number) {
		struct vcpu vcpu = create_vcpu(kvm, vm, number);

		print_start(&vcpu, number);
		enter_and_leave(&vcpu, number);
	}
	return 0;
}
