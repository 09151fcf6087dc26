/* ANCHOR: all */
#define _GNU_SOURCE
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

enum { SIZE = 0x8000, START = 0x1000, TIMES = 2000 };

static const uint8_t code[] = {
	0xe6, 0x42,				/* again: out 0x42, al */
	0xeb, 0xfc,				/* jmp again */
};

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* ANCHOR: now */
static uint64_t now(void)
{
	struct timespec time;

	check(clock_gettime(CLOCK_MONOTONIC, &time), "clock_gettime");
	return time.tv_sec * 1000000000ull + time.tv_nsec;
}
/* ANCHOR_END: now */

/* ANCHOR: measure */
/* Measures each of many calls by itself. Prints the shortest time, the one in the middle, and the longest. */
static int compare(const void *a, const void *b)
{
	uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

	return (left > right) - (left < right);
}

static void measure(const char *name, int vcpu)
{
	static uint64_t times[TIMES];

	for (int i = 0; i < TIMES; ++i) {
		uint64_t start = now();

		if (vcpu < 0)
			syscall(SYS_getppid);
		else
			check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
		times[i] = now() - start;
	}
	qsort(times, TIMES, sizeof(times[0]), compare);
	printf("%-10s min %6llu ns   median %6llu ns   max %9llu ns\n", name, (unsigned long long)times[0],
	       (unsigned long long)times[TIMES / 2], (unsigned long long)times[TIMES - 1]);
}
/* ANCHOR_END: measure */

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
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = START, .rflags = 2 };

	check(vcpu, "KVM_CREATE_VCPU");
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	memcpy(memory + START, code, sizeof(code));
	/* ANCHOR: run */
	measure("getppid", -1);
	measure("an exit", vcpu);
	/* ANCHOR_END: run */
	return 0;
}
/* ANCHOR_END: all */
