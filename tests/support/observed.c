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
#include "observed/machine.h"
#include "observed/signals.h"
#include "observed/wrong.h"
#include "observed/filters.h"

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
	MODE("filter-early", filters_early(0));
	MODE("filter-fork", filters_early(1));
	MODE("filter-all", filters_all());
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
