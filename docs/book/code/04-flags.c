#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	if (vcpu < 0 || size < 0) {
		perror("vCPU");
		return 1;
	}
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);

	if (run == MAP_FAILED) {
		perror("mmap");
		return 1;
	}
	struct kvm_regs regs;

	if (ioctl(vcpu, KVM_GET_REGS, &regs) < 0) {
		perror("KVM_GET_REGS");
		return 1;
	}
	printf("RAX is %llu, RFLAGS is %llu\n", regs.rax, regs.rflags);
	printf("the last exit has reason %u\n", run->exit_reason);
	return 0;
}
