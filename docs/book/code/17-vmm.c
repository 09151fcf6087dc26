// ANCHOR: all
// A VMM that can make a mistake: ./17-vmm right|cs IMAGE
//
// The guest starts in real mode at 0x1000. With "cs", the VMM forgets to set CS.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM_SIZE = 0x10000, ENTRY = 0x1000 };

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	need(argc == 3, "usage: 17-vmm right|cs IMAGE");
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	FILE *file = fopen(argv[2], "rb");
	need(file != NULL && fread(ram + ENTRY, 1, RAM_SIZE - ENTRY, file) > 0, argv[2]);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	if (strcmp(argv[1], "cs") != 0) {
		sregs.cs.base = 0;
		sregs.cs.selector = 0;
	}
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rsp = 0xf000, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		if (run->exit_reason == KVM_EXIT_IO && run->io.port == 0xe9) {
			putchar(((char *)run)[run->io.data_offset]);
			fflush(stdout);
		} else if (run->exit_reason == KVM_EXIT_HLT) {
			return 0;
		} else {
			fprintf(stderr, "unexpected exit, reason %u\n", run->exit_reason);
			return 1;
		}
	}
}
// ANCHOR_END: all
