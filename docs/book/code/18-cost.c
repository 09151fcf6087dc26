// Measures an exit: the time from KVM_RUN to its return, for a guest that writes to a port again and again.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { RAM_SIZE = 0x10000, ROUNDS = 2000 };

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

// ANCHOR: clock
static uint64_t now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static void show(const char *what, uint64_t *times)
{
	qsort(times, ROUNDS, sizeof(*times), compare);
	printf("%-12s shortest %6.2f us, median %6.2f us, longest %8.2f us\n", what, times[0] / 1e3, times[ROUNDS / 2] / 1e3,
	       times[ROUNDS - 1] / 1e3);
}
// ANCHOR_END: clock

int main(void)
{
	static uint64_t times[ROUNDS];
	// out 0x80, al; jmp back to it
	static const uint8_t code[] = { 0xe6, 0x80, 0xeb, 0xfc };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	memcpy(ram + 0x1000, code, sizeof(code));
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

	// ANCHOR: measure
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t start = now();
		syscall(SYS_getppid);
		times[i] = now() - start;
	}
	show("system call", times);
	for (int i = 0; i < ROUNDS; i++) {
		uint64_t start = now();
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		times[i] = now() - start;
	}
	show("exit", times);
	// ANCHOR_END: measure
	return 0;
}
