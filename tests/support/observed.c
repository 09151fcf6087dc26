/*
 * A VMM for the tests of `vmm observe`: gcc -pthread -o observed observed.c -ldl
 *
 *   observed MODE [NUMBER]
 *
 * Each machine runs a 16-bit guest with known exits: OUTS bytes to port 0x42, STORES bytes to 0x20010, where it has no
 * memory, a byte from port 0x43, and HLT. Each mode uses KVM in another way. A mode that finds something wrong says so on
 * stdout and returns 1. With -DLIBRARY this is a shared library with the function `plain`.
 */
#define _GNU_SOURCE
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

static struct machine make(const uint8_t *code, size_t size)
{
	struct machine machine;
	machine.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(machine.kvm >= 0);
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

/* A machine before the fork, one in the child, and the machine of the parent again. */
static int forks(void)
{
	struct machine machine = make(guest, sizeof(guest));
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
	pid_t child = fork();
	if (child == 0) {
		/* KVM refuses the process that did not make the VM. */
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == -1 && errno == EIO);
		NEED(close(machine.vcpu) == 0 && close(machine.vm) == 0);
		_exit(plain());
	}
	NEED(wait_for(child) == 0);
	NEED(run_on(machine.vcpu, machine.run) == EXITS - 1);
	return 0;
}

static int executes(const char *self)
{
	pid_t child = vfork();
	if (child == 0) {
		execl(self, self, "plain", NULL);
		_exit(99);
	}
	NEED(wait_for(child) == 0);
	return plain();
}

/* Two descriptors of one vCPU, and of one VM. */
static int dups(void)
{
	struct machine machine = make(guest, sizeof(guest));
	int other = dup(machine.vcpu), third = fcntl(machine.vcpu, F_DUPFD_CLOEXEC, 100), vm = dup(machine.vm);
	for (int exits = 0; exits < 300; exits++) {
		NEED(ioctl(exits % 2 ? other : machine.vcpu, KVM_RUN, 0) == 0);
		handle(machine.run);
	}
	NEED(close(machine.vcpu) == 0 && close(machine.vm) == 0);
	NEED(run_on(third, machine.run) == EXITS - 300);
	int second = ioctl(vm, KVM_CREATE_VCPU, 1);
	start(second);
	NEED(run_on(second, map_run(&machine, second)) == EXITS);
	return 0;
}

/* The number of a vCPU is used again, for another vCPU: by a new one, and by dup2. */
static int reuses(void)
{
	struct machine one = make(guest, sizeof(guest)), two = make(guest, sizeof(guest));
	for (int exits = 0; exits < 100; exits++)
		NEED(ioctl(one.vcpu, KVM_RUN, 0) == 0 && handle(one.run));
	NEED(dup2(two.vcpu, one.vcpu) == one.vcpu);
	/* The mapping of the first machine shows its last exit, which is not that of the second one. */
	NEED(run_on(one.vcpu, two.run) == EXITS);
	NEED(close(two.vcpu) == 0 && close(one.vcpu) == 0);
	int again = ioctl(two.vm, KVM_CREATE_VCPU, 7);
	NEED(again == one.vcpu || again == two.vcpu);
	start(again);
	NEED(run_on(again, map_run(&two, again)) == EXITS);
	return 0;
}

/* Never maps `kvm_run`, so it cannot see its exits. The read gets whatever is there. */
static int never_maps(void)
{
	struct machine machine = make(guest, sizeof(guest));
	munmap(machine.run, ioctl(machine.kvm, KVM_GET_VCPU_MMAP_SIZE, 0));
	for (int exits = 0; exits < EXITS; exits++)
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
	return 0;
}

static int maps_twice(void)
{
	struct machine machine = make(guest, sizeof(guest));
	return run_on(machine.vcpu, map_run(&machine, machine.vcpu)) != EXITS;
}

static int repeats(int times)
{
	while (times--)
		plain();
	return 0;
}

/* A program that does not expect to make a socket, and would be killed. */
static int filters(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
	return plain();
}

/* Leaves so many machines to the end of the process. */
static int leaves(int count)
{
	while (count--)
		make(guest, sizeof(guest));
	return 0;
}

static void *run_thread(void *argument)
{
	struct machine *machine = argument;
	NEED(run_on(machine->vcpu, machine->run) == EXITS);
	return NULL;
}

/* Several vCPUs of one VM, each in its thread. */
static int vcpus(int count)
{
	static struct machine machines[64];
	static pthread_t threads[64];
	machines[0] = make(guest, sizeof(guest));
	for (int id = 1; id < count; id++) {
		machines[id] = machines[0];
		machines[id].vcpu = ioctl(machines[0].vm, KVM_CREATE_VCPU, id);
		NEED(machines[id].vcpu >= 0);
		start(machines[id].vcpu);
		machines[id].run = map_run(&machines[0], machines[id].vcpu);
	}
	for (int id = 0; id < count; id++)
		NEED(pthread_create(&threads[id], NULL, run_thread, &machines[id]) == 0);
	for (int id = 0; id < count; id++)
		NEED(pthread_join(threads[id], NULL) == 0);
	return 0;
}

/* One vCPU after the other of different VMs in one thread. */
static int vms(void)
{
	struct machine one = make(guest, sizeof(guest)), two = make(guest, sizeof(guest));
	int exits = 0;
	do {
		NEED(ioctl(two.vcpu, KVM_RUN, 0) == 0);
		NEED(ioctl(one.vcpu, KVM_RUN, 0) == 0);
		exits++;
		handle(two.run);
	} while (handle(one.run));
	NEED(exits == EXITS);
	return 0;
}

static volatile sig_atomic_t alarms;
static sigjmp_buf back;

static void on_alarm(int signal)
{
	(void)signal;
	alarms++;
	/* A call of another vCPU's would be as good: the handler uses ioctl. */
	NEED(ioctl(-1, KVM_RUN, 0) == -1 && errno == EBADF);
	errno = 55;
}

static void on_alarm_jump(int signal)
{
	(void)signal;
	siglongjmp(back, 1);
}

static void ring_alarms(void (*handler)(int), int interval)
{
	struct sigaction action = {.sa_handler = handler};
	struct itimerval timer = {.it_interval.tv_usec = interval, .it_value.tv_usec = interval};
	NEED(sigaction(SIGALRM, &action, NULL) == 0 && setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* A guest without exits, which only signals get out of KVM_RUN. */
static int is_interrupted(void)
{
	struct machine machine = make(spin, sizeof(spin));
	ring_alarms(on_alarm, 2000);
	while (alarms < 50) {
		errno = 0;
		/* On a busy host the next alarm may come before errno is looked at. */
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == -1 && (errno == EINTR || errno == 55));
		NEED(machine.run->exit_reason == KVM_EXIT_INTR);
	}
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	return plain();
}

/* A handler that does not return to KVM_RUN. */
static int jumps(void)
{
	struct machine machine = make(spin, sizeof(spin));
	static int jumped;
	if (sigsetjmp(back, 1))
		jumped++;
	else
		ring_alarms(on_alarm_jump, 2000);
	if (jumped < 20) {
		ioctl(machine.vcpu, KVM_RUN, 0);
		NEED(!"KVM_RUN returned");
	}
	setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
	memcpy((char *)machine.ram + 0x1000, guest, sizeof(guest));
	start(machine.vcpu);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* Calls that make no sense have the results that the kernel gives. */
static int garbage(void)
{
	struct machine machine = make(guest, sizeof(guest));
	int null = open("/dev/null", O_RDWR);
	int fds[] = {-1, 1 << 20, 0x7fffffff, machine.kvm, machine.vm, machine.vcpu, null, 999};
	unsigned long requests[] = {KVM_RUN, KVM_CREATE_VCPU, KVM_CREATE_VM, 0xae00, 0xaeff, 0, ~0ul, KVM_GET_REGS,
				    0xffffffff00000000ul | KVM_RUN};
	for (size_t fd = 0; fd < sizeof(fds) / sizeof(*fds); fd++)
		for (size_t request = 0; request < sizeof(requests) / sizeof(*requests); request++) {
			/* An argument that is wrong for all of these calls. */
			unsigned long argument = ~0ul - 4095;
			errno = 0;
			long result = ioctl(fds[fd], requests[request], argument);
			int error = errno;
			errno = 0;
			long right = syscall(SYS_ioctl, fds[fd], requests[request], argument);
			/* A call that made a descriptor would get another number the second time. */
			NEED((result < 0) == (right < 0) && error == errno);
		}
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	NEED(close(-1) == -1 && errno == EBADF && dup2(999, 5) == -1 && errno == EBADF);
	NEED(close_range(500, 400, 0) == -1 && errno == EINVAL);
	return 0;
}

/* KVM refuses paging without protection. The refusal changes nothing. */
static int is_refused(void)
{
	struct machine machine = make(guest, sizeof(guest));
	struct kvm_sregs right, wrong;
	NEED(ioctl(machine.vcpu, KVM_GET_SREGS, &right) == 0);
	wrong = right;
	wrong.cr0 |= 0x80000000;
	wrong.efer |= 0x500;
	for (int times = 0; times < 40; times++) {
		errno = 0;
		NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &wrong) == -1 && errno == EINVAL);
	}
	NEED(ioctl(machine.vcpu, KVM_GET_SREGS, &wrong) == 0 && !memcmp(&right, &wrong, sizeof(right)));
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* Puts a vCPU into protected mode without interrupt handlers, where an undefined instruction is fatal. */
static const uint8_t fatal[] = {0x0f, 0x0b};

static void start_protected(int vcpu)
{
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1}, data = code;
	struct kvm_sregs sregs;
	start(vcpu);
	NEED(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	data.type = 3, data.selector = 16;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 |= 1;
	sregs.idt.limit = 0;
	NEED(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
}

static int dies(void)
{
	struct machine machine = make(fatal, sizeof(fatal));
	start_protected(machine.vcpu);
	errno = 77;
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && errno == 77);
	NEED(machine.run->exit_reason == KVM_EXIT_SHUTDOWN);
	return 0;
}

/* Filters its system calls so that any that it does not make by itself kills it, once its vCPU exists. */
static int filters_late(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	struct machine machine = make(guest, sizeof(guest));
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	memcpy((char *)machine.ram + 0x1000, fatal, sizeof(fatal));
	start_protected(machine.vcpu);
	struct kvm_sregs sregs = {.cr0 = 0x80000000};
	NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs) == -1 && errno == EINVAL);
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && machine.run->exit_reason == KVM_EXIT_SHUTDOWN);
	_exit(0);
}

/* Mistakes that KVM refuses, before a guest that runs to its end. */
static int mistakes(void)
{
	struct machine machine = make(guest, sizeof(guest));
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = 0x20001, .memory_size = 0x1000, .userspace_addr = (uint64_t)machine.ram};
	struct kvm_pit_config pit = {0};
	struct kvm_sregs sregs = {.cr0 = 0x80000000};
	NEED(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region) == -1 && errno == EINVAL);
	region.guest_phys_addr = 0x8000;
	NEED(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region) == -1 && errno == EEXIST);
	NEED(ioctl(machine.vm, KVM_CREATE_VCPU, 0) == -1 && errno == EEXIST);
	NEED(ioctl(machine.vm, KVM_CREATE_PIT2, &pit) == -1 && errno == ENOENT);
	NEED(ioctl(machine.vm, KVM_SET_REGS, 0) == -1 && errno == ENOTTY);
	NEED(ioctl(machine.vm, KVM_RUN, 0) == -1 && errno == ENOTTY);
	NEED(ioctl(machine.vcpu, KVM_SET_REGS, 0) == -1 && errno == EFAULT);
	NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs) == -1 && errno == EINVAL);
	NEED(ioctl(-1, KVM_GET_API_VERSION, 0) == -1 && errno == EBADF);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* A mistake before there is a vCPU: the program ends at once, as most VMMs do. */
static int ends_early(int kvm)
{
	struct kvm_userspace_memory_region region = {.memory_size = 0xfff};
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	return vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0;
}

/* Pointers that are wrong, and structures that run off the end of memory, have the results that the kernel gives. */
static int pointers(void)
{
	struct machine machine = make(guest, sizeof(guest));
	char *pages = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(pages != MAP_FAILED && munmap(pages + 0x1000, 0x1000) == 0);
	memset(pages + 0xf00, 0x41, 0x100);
	unsigned long wrong[] = {0, 1, ~0ul, ~0ul - 4095, 1ul << 47, (unsigned long)pages + 0x1000,
				 (unsigned long)pages + 0xff8, (unsigned long)pages + 0xff0, (unsigned long)pages + 0xffc};
	unsigned long requests[] = {
		KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_SET_MSRS,
		KVM_GET_MSRS, KVM_GET_MSR_INDEX_LIST, KVM_GET_SUPPORTED_CPUID, KVM_SET_USER_MEMORY_REGION,
		KVM_SET_GSI_ROUTING, KVM_ENABLE_CAP, KVM_IRQFD, KVM_SET_XSAVE, KVM_SET_LAPIC, KVM_SET_SIGNAL_MASK,
		KVM_SET_PMU_EVENT_FILTER, KVM_SET_DEBUGREGS, 0x7fffae99, 0xffffae90,
	};
	int fds[] = {machine.kvm, machine.vm, machine.vcpu};
	for (size_t fd = 0; fd < sizeof(fds) / sizeof(*fds); fd++)
		for (size_t request = 0; request < sizeof(requests) / sizeof(*requests); request++)
			for (size_t argument = 0; argument < sizeof(wrong) / sizeof(*wrong); argument++) {
				errno = 0;
				long result = ioctl(fds[fd], requests[request], wrong[argument]);
				int error = errno;
				errno = 0;
				NEED(result == syscall(SYS_ioctl, fds[fd], requests[request], wrong[argument]));
				NEED(error == errno);
			}
	/* A count that is larger than the memory behind it. */
	uint32_t *count = (uint32_t *)(pages + 0xfe0);
	for (uint32_t number = 1; number; number <<= 1) {
		count[0] = count[1] = number;
		NEED(ioctl(machine.vcpu, KVM_SET_CPUID2, count) == -1 && (errno == EFAULT || errno == E2BIG || errno == ENOMEM));
		NEED(ioctl(machine.vcpu, KVM_SET_MSRS, count) <= 1);
	}
	start(machine.vcpu);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* The number of /dev/kvm becomes that of a vCPU, and another one that of /dev/kvm. */
static int reopens(void)
{
	struct machine one = make(guest, sizeof(guest));
	NEED(close(one.kvm) == 0);
	int second = ioctl(one.vm, KVM_CREATE_VCPU, 1);
	NEED(second == one.kvm);
	start(second);
	one.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(one.kvm >= 0);
	NEED(run_on(second, map_run(&one, second)) == EXITS);
	return run_on(one.vcpu, one.run) != EXITS || plain();
}

/* The numbers of descriptors, and what is open at the end. */
static int descriptors(void)
{
	struct machine machine = make(guest, sizeof(guest));
	run_on(machine.vcpu, machine.run);
	printf("%d %d %d %d\n", machine.kvm, machine.vm, machine.vcpu, open("/dev/null", O_RDONLY));
	for (int fd = 0; fd < 1024; fd++)
		if (fcntl(fd, F_GETFD) >= 0)
			printf("%d ", fd);
	printf("\n");
	return 0;
}

static int opens(const char *library)
{
	void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	NEED(handle);
	int (*function)(void) = (int (*)(void))dlsym(handle, "plain");
	NEED(function);
	return function();
}

/* Never ends by itself. A child and its child do not, either, and ignore SIGTERM. */
static int hangs(void)
{
	struct machine machine = make(endless, sizeof(endless));
	if (fork() == 0) {
		signal(SIGTERM, SIG_IGN);
		if (fork() == 0)
			setsid();
		for (;;)
			pause();
	}
	signal(SIGTERM, SIG_IGN);
	printf("%d\n", getpid());
	fflush(stdout);
	for (;;) {
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
		handle(machine.run);
	}
}

static int crashes(void)
{
	plain();
	signal(SIGSEGV, SIG_DFL);
	raise(SIGSEGV);
	return 0;
}

/* Runs until a signal, which must arrive once. */
static void on_term(int signal)
{
	const char *text = signal == SIGTERM ? "signal 15\n" : "signal 2\n";
	/* Not printf: the signal may come while the program is in it. */
	NEED(write(1, text, strlen(text)) > 0);
	alarms++;
}

static int waits(void)
{
	struct machine machine = make(endless, sizeof(endless));
	struct sigaction action = {.sa_handler = on_term};
	NEED(sigaction(SIGTERM, &action, NULL) == 0 && sigaction(SIGINT, &action, NULL) == 0);
	printf("ready\n");
	fflush(stdout);
	while (!alarms) {
		int result = ioctl(machine.vcpu, KVM_RUN, 0);
		NEED(result == 0 || errno == EINTR);
	}
	return 7;
}

static double nanoseconds(clockid_t clock)
{
	struct timespec time;
	clock_gettime(clock, &time);
	return time.tv_sec * 1e9 + time.tv_nsec;
}

/* A number of exits as fast as possible. Prints the CPU time and the wall time of one, in nanoseconds. */
static int measures(long count)
{
	struct machine machine = make(endless, sizeof(endless));
	for (int exits = 0; exits < 256; exits++)
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
	double cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID), wall = nanoseconds(CLOCK_MONOTONIC);
	for (long exits = 0; exits < count; exits++)
		NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0);
	cpu = nanoseconds(CLOCK_THREAD_CPUTIME_ID) - cpu;
	wall = nanoseconds(CLOCK_MONOTONIC) - wall;
	printf("%.1f %.1f\n", cpu / count, wall / count);
	return 0;
}

#ifndef LIBRARY
int main(int count, char **words)
{
	const char *mode = count > 1 ? words[1] : "plain";
	const char *word = count > 2 ? words[2] : "0";
	long number = atol(word);
#define MODE(name, call)                                                                                              \
	if (!strcmp(mode, name))                                                                                      \
	return call
	MODE("plain", plain());
	MODE("fork", forks());
	MODE("exec", executes(words[0]));
	MODE("dup", dups());
	MODE("reuse", reuses());
	MODE("never-map", never_maps());
	MODE("map-twice", maps_twice());
	MODE("repeat", repeats((int)number));
	MODE("filter", filters());
	MODE("leave", leaves((int)number));
	MODE("vcpus", vcpus((int)number));
	MODE("vms", vms());
	MODE("interrupt", is_interrupted());
	MODE("jump", jumps());
	MODE("garbage", garbage());
	MODE("mistakes", mistakes());
	MODE("early", ends_early(open("/dev/kvm", O_RDWR)));
	MODE("not-open", ends_early(-1));
	MODE("pointers", pointers());
	MODE("reopen", reopens());
	MODE("refused", is_refused());
	MODE("dies", dies());
	MODE("filter-late", filters_late());
	MODE("descriptors", descriptors());
	MODE("dlopen", opens(word));
	MODE("hang", hangs());
	MODE("crash", crashes());
	MODE("wait", waits());
	MODE("measure", measures(number));
	MODE("status", (int)number);
	return 2;
}
#endif
