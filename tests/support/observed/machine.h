/* A machine with a 16-bit guest whose exits are known. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OUTS = 1000, STORES = 500, EXITS = OUTS + STORES + 2, RAM = 0x10000 };

#define NEED(condition)                                                                                               \
	do {                                                                                                          \
		if (!(condition)) {                                                                                   \
			printf("line %d: %s is false (errno %d)\n", __LINE__, #condition, errno);                     \
			fflush(stdout);                                                                               \
			_exit(1);                                                                                     \
		}                                                                                                     \
	} while (0)

static const uint8_t guest[] = {
	0xb9, OUTS & 0xff, OUTS >> 8,     /* mov cx, OUTS */
	0xe6, 0x42, 0xe2, 0xfc,           /* out 0x42, al; loop */
	0xb8, 0x00, 0x20, 0x8e, 0xd8,     /* mov ax, 0x2000; mov ds, ax */
	0xb9, STORES & 0xff, STORES >> 8, /* mov cx, STORES */
	0xa2, 0x10, 0x00, 0xe2, 0xfb,     /* mov [0x10], al; loop */
	0xe4, 0x43, 0xf4,                 /* in al, 0x43; hlt */
};
/* out 0x42, al; jmp */
static const uint8_t endless[] = {0xe6, 0x42, 0xeb, 0xfc};
/* jmp $ */
static const uint8_t spin[] = {0xeb, 0xfe};

struct machine {
	int kvm, vm, vcpu;
	struct kvm_run *run;
	void *ram;
};

static struct kvm_run *map_run(struct machine *machine, int vcpu)
{
	int size = ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	NEED(run != MAP_FAILED);
	return run;
}

/* Puts a vCPU to the start of the guest. */
static void start(int vcpu)
{
	struct kvm_sregs sregs;
	NEED(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = sregs.cs.selector = 0;
	NEED(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
	struct kvm_regs regs = {.rip = 0x1000, .rflags = 2};
	NEED(ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
}

static struct machine make_on(int kvm, const uint8_t *code, size_t size)
{
	struct machine machine = {.kvm = kvm};
	machine.vm = ioctl(machine.kvm, KVM_CREATE_VM, 0);
	NEED(machine.vm >= 0);
	machine.ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	NEED(machine.ram != MAP_FAILED);
	memcpy((char *)machine.ram + 0x1000, code, size);
	struct kvm_userspace_memory_region region = {.memory_size = RAM, .userspace_addr = (uint64_t)machine.ram};
	NEED(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
	machine.vcpu = ioctl(machine.vm, KVM_CREATE_VCPU, 0);
	NEED(machine.vcpu >= 0);
	start(machine.vcpu);
	machine.run = map_run(&machine, machine.vcpu);
	return machine;
}

static struct machine make(const uint8_t *code, size_t size)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(kvm >= 0);
	return make_on(kvm, code, size);
}

static void unmake(struct machine *machine)
{
	munmap(machine->run, ioctl(machine->kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	munmap(machine->ram, RAM);
	NEED(close(machine->vcpu) == 0 && close(machine->vm) == 0 && close(machine->kvm) == 0);
}

/* Handles an exit. Returns 0 at the HLT. */
static int handle(struct kvm_run *run)
{
	if (run->exit_reason == KVM_EXIT_IO && run->io.direction == KVM_EXIT_IO_IN)
		*((uint8_t *)run + run->io.data_offset) = 0x5a;
	NEED(run->exit_reason == KVM_EXIT_IO || run->exit_reason == KVM_EXIT_MMIO || run->exit_reason == KVM_EXIT_HLT);
	return run->exit_reason != KVM_EXIT_HLT;
}

static int run_on(int vcpu, struct kvm_run *run)
{
	int exits = 0;
	do {
		errno = 77;
		NEED(ioctl(vcpu, KVM_RUN, 0) == 0 && errno == 77);
		exits++;
	} while (handle(run));
	return exits;
}

int plain(void)
{
	struct machine machine = make(guest, sizeof(guest));
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	struct kvm_regs regs;
	NEED(ioctl(machine.vcpu, KVM_GET_REGS, &regs) == 0 && (regs.rax & 0xff) == 0x5a);
	unmake(&machine);
	return 0;
}

static int wait_for(pid_t child)
{
	int status;
	NEED(waitpid(child, &status, 0) == child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
