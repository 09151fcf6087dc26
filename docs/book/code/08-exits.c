/* ANCHOR: all */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>

enum { SIZE = 0x8000, START = 0x1000 };

/* ANCHOR: guests */
static const struct guest {
	const char *name;
	uint8_t code[8];
} guests[] = {
	{ "hlt", { 0xf4 } },
	{ "out 0x42, al", { 0xe6, 0x42, 0xf4 } },
	{ "in al, 0x42", { 0xe4, 0x42, 0xf4 } },
	{ "mov [0x9000], al", { 0xa2, 0x00, 0x90, 0xf4 } },
	{ "jmp 0x9000", { 0xe9, 0xfd, 0x7f } },
	{ "endless: jmp endless", { 0xeb, 0xfe } },
};
/* ANCHOR_END: guests */

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* ANCHOR: print */
static void print_exit(const struct kvm_run *run)
{
	printf("    reason %u: ", run->exit_reason);
	switch (run->exit_reason) {
	case KVM_EXIT_HLT:
		printf("KVM_EXIT_HLT\n");
		break;
	case KVM_EXIT_IO:
		printf("KVM_EXIT_IO, %s port 0x%x\n", run->io.direction == KVM_EXIT_IO_OUT ? "write to" : "read from",
		       run->io.port);
		break;
	case KVM_EXIT_MMIO:
		printf("KVM_EXIT_MMIO, %s 0x%llx\n", run->mmio.is_write ? "store to" : "load from", run->mmio.phys_addr);
		break;
	case KVM_EXIT_INTERNAL_ERROR:
		printf("KVM_EXIT_INTERNAL_ERROR, suberror %u\n", run->internal.suberror);
		break;
	default:
		printf("not in this list\n");
	}
}
/* ANCHOR_END: print */

static void ignore(int signal)
{
	(void)signal;
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
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	/* ANCHOR: signal */
	struct sigaction action = { .sa_handler = ignore };
	struct itimerval every = { .it_interval = { .tv_usec = 50000 }, .it_value = { .tv_usec = 50000 } };

	check(sigaction(SIGALRM, &action, NULL), "sigaction");
	check(setitimer(ITIMER_REAL, &every, NULL), "setitimer");
	/* ANCHOR_END: signal */
	/* ANCHOR: run */
	for (size_t i = 0; i < sizeof(guests) / sizeof(guests[0]); ++i) {
		struct kvm_regs regs = { .rip = START, .rflags = 2 };

		printf("%s\n", guests[i].name);
		memcpy(memory + START, guests[i].code, sizeof(guests[i].code));
		check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
		do {
			if (ioctl(vcpu, KVM_RUN, 0) < 0) {
				printf("    KVM_RUN failed: %s\n", strerror(errno));
				break;
			}
			print_exit(run);
		} while (run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO);
	}
	/* ANCHOR_END: run */
	return 0;
}
/* ANCHOR_END: all */
