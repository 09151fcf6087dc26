/* ANCHOR: all */
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { SIZE = 0x8000, START = 0x1000, COUNTER = 0x2000, STOP = 0x2004 };

/* ANCHOR: code */
static const uint8_t code[] = {
	0xff, 0x06, 0x00, 0x20,			/* again: inc word [0x2000] */
	0x80, 0x3e, 0x04, 0x20, 0x00,		/* cmp byte [0x2004], 0 */
	0x74, 0xf5,				/* je again */
	0xf4,					/* hlt */
};
/* ANCHOR_END: code */

static uint8_t *memory;

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

/* ANCHOR: watch */
static uint16_t counter(void)
{
	return __atomic_load_n((uint16_t *)(memory + COUNTER), __ATOMIC_ACQUIRE);
}

static void *watch(void *argument)
{
	(void)argument;
	for (int changes = 0; changes < 3; ++changes) {
		uint16_t before = counter();

		while (counter() == before)
			usleep(100);
		printf("the guest has counted\n");
	}
	__atomic_store_n(memory + STOP, 1, __ATOMIC_RELEASE);
	return NULL;
}
/* ANCHOR_END: watch */

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
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
	struct kvm_regs regs = { .rip = START, .rflags = 2 };

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	memcpy(memory + START, code, sizeof(code));
	/* ANCHOR: run */
	pthread_t watcher;

	check(-pthread_create(&watcher, NULL, watch, NULL), "pthread_create");
	check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	pthread_join(watcher, NULL);
	printf("KVM_RUN has returned once, with reason %u\n", run->exit_reason);
	/* ANCHOR_END: run */
	return run->exit_reason == KVM_EXIT_HLT ? 0 : 1;
}
/* ANCHOR_END: all */
