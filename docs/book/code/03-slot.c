#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#ifndef ADDRESS
#define ADDRESS 0x8000
#endif

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	void *memory = mmap(NULL, 0x4000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (vm < 0 || memory == MAP_FAILED) {
		perror("VM or memory");
		return 1;
	}
	struct kvm_userspace_memory_region region = {
		.slot = 0,
		.guest_phys_addr = ADDRESS,
		.memory_size = 0x4000,
		.userspace_addr = (uintptr_t)memory,
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0) {
		perror("KVM_SET_USER_MEMORY_REGION");
		return 1;
	}
	printf("the guest has memory from 0x%x to 0x%x\n", ADDRESS, ADDRESS + 0x3fff);
	return 0;
}
