/*
 * Chapter 12: counts the exits of a guest, and measures what they take.
 *
 *   ./vmm IMAGE
 *
 * The guest's own output goes to stderr here: the report is what counts.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

/* The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line. */
enum { HALTED = 0, TRIPLE_FAULT = 3, UNEXPECTED_EXIT = 4 };
/* The memory of the guest: the image from 0x1000 on, the stack below 0xf0000, and the page tables from there on. */
enum { MEMORY_SIZE = 0x100000, ENTRY = 0x1000, TABLES = 0xf0000, PAGE = 0x1000 };
enum { DEBUG_PORT = 0xe9 };

/* The machine: descriptors, the memory of the guest, and what KVM and this program share for the vCPU. */
static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;

/* Ends the program with a message if a call has failed. */
static void check(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *map(size_t size, int flags, int fd)
{
	void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(start == MAP_FAILED ? -1 : 0, "mmap");
	return start;
}

/* Chapter 3: gives the guest `size` bytes of memory at a guest physical address. */
static void *add_memory(unsigned slot, uint64_t address, size_t size)
{
	void *start = map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = address,
		.memory_size = size,
		.userspace_addr = (uintptr_t)start,
	};

	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	return start;
}

/* Chapters 2 to 4: the VM, its memory and its vCPU. */
static void create_machine(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(kvm, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(vm, "KVM_CREATE_VM");
	memory = add_memory(0, 0, MEMORY_SIZE);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	check(vcpu, "KVM_CREATE_VCPU");

	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	check(size, "KVM_GET_VCPU_MMAP_SIZE");
	run = map(size, MAP_SHARED, vcpu);
}

/* Chapter 5: copies the file into the memory of the guest, from ENTRY on. */
static void load(const char *name)
{
	FILE *file = fopen(name, "rb");

	check(file ? 0 : -1, name);
	if (fread(memory + ENTRY, 1, TABLES - ENTRY, file) == 0 || fgetc(file) != EOF) {
		fprintf(stderr, "vmm: %s is empty, too large or no file\n", name);
		exit(1);
	}
	fclose(file);
}

/* Chapter 7: page tables that map the first 4 GiB to themselves, in pages of 2 MiB. */
static void make_page_tables(void)
{
	uint64_t *tables = (uint64_t *)(memory + TABLES);

	tables[0] = (TABLES + PAGE) | 3;
	for (uint64_t i = 0; i < 4; ++i)
		tables[512 + i] = (TABLES + (2 + i) * PAGE) | 3;
	for (uint64_t i = 0; i < 4 * 512; ++i)
		tables[2 * 512 + i] = i << 21 | 0x83;
}

/* Chapter 7: a segment of 64-bit mode. Type 11 is code, and 3 is data. */
static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){ .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .limit = 0xffffffff };
}

/* Chapter 7: lets the vCPU start in long mode at ENTRY. */
static void set_long_mode(void)
{
	struct kvm_regs regs = { .rip = ENTRY, .rsp = TABLES, .rflags = 2 };
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = segment(8, 11);
	sregs.cs.l = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(16, 3);
	sregs.cr3 = TABLES;
	sregs.cr4 |= 0x20;		/* PAE */
	sregs.efer |= 0x500;		/* LME, LMA */
	sregs.cr0 |= 0x80000001;	/* PG, PE */
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Exits by reason. The reasons of KVM are small numbers. */
enum { REASONS = 64 };
static uint64_t counts[REASONS];
/* Nanoseconds in KVM_RUN, and in this program between two calls of it. */
static uint64_t in_kvm, in_vmm;

/* Returns the time of a clock that never goes back, in nanoseconds. */
static uint64_t now(void)
{
	//{
	//= return 0; /* TODO 1: clock_gettime with CLOCK_MONOTONIC gives seconds and nanoseconds. */
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return (uint64_t)time.tv_sec * 1000000000 + time.tv_nsec;
	//}
}

/* Chapter 9: the debug port is the only device. */
static void access_port(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t length = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xff, length);
	else if (run->io.port == DEBUG_PORT)
		fwrite(data, 1, length, stderr);
}

/* Handles the exit. Returns -1 if the guest goes on, and otherwise the exit status of this program. */
static int handle_exit(void)
{
	switch (run->exit_reason) {
	case KVM_EXIT_HLT:
		return HALTED;
	case KVM_EXIT_IO:
		access_port();
		return -1;
	case KVM_EXIT_MMIO:
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		return -1;
	case KVM_EXIT_SHUTDOWN:
		fprintf(stderr, "vmm: the guest died of a triple fault\n");
		return TRIPLE_FAULT;
	default:
		fprintf(stderr, "vmm: unexpected exit: reason %u\n", run->exit_reason);
		return UNEXPECTED_EXIT;
	}
}

/* Runs the guest until it ends. Returns the exit status of this program. */
static int run_guest(void)
{
	//{
	//= /*
	//=  * TODO 2: below, count the exits in `counts`, by run->exit_reason. A return of KVM_RUN with EINTR does not count.
	//=  * TODO 3: below, add the time in KVM_RUN to in_kvm, with that of calls which ended with EINTR. Add the time from a return
	//=  * of KVM_RUN to the next call, or to the end, to in_vmm.
	//=  */
	//= (void)counts;
	//= (void)now;
	uint64_t entered = now();
	//}

	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);

		if (result < 0 && errno == EINTR)
			continue;
		check(result, "KVM_RUN");
		//{
		//= /* TODO 2 and 3: an exit has happened just now. */
		uint64_t left = now();

		in_kvm += left - entered;
		if (run->exit_reason < REASONS)
			++counts[run->exit_reason];
		//}

		int status = handle_exit();

		//{
		//= /* TODO 3: the exit is handled. */
		entered = now();
		in_vmm += entered - left;
		//}
		if (status >= 0)
			return status;
	}
}

/* Prints the report: how many exits, of which reasons, and the mean times. */
static void report(void)
{
	uint64_t exits = 0;

	//{
	//= /* TODO 4: `exits` is the sum of `counts`. */
	for (int reason = 0; reason < REASONS; ++reason)
		exits += counts[reason];
	//}
	printf("exits: %lu\n", exits);
	printf("IO: %lu\n", counts[KVM_EXIT_IO]);
	printf("MMIO: %lu\n", counts[KVM_EXIT_MMIO]);
	printf("HLT: %lu\n", counts[KVM_EXIT_HLT]);
	if (exits == 0)
		return;
	printf("in KVM_RUN: %lu ns per exit\n", in_kvm / exits);
	printf("in the VMM: %lu ns per exit\n", in_vmm / exits);
}

static void ignore(int signal)
{
	(void)signal;
}

/* Chapter 8: a signal every 5 ms, whose handler does nothing. KVM_RUN then returns with EINTR. */
static void start_signals(void)
{
	struct sigaction action = { .sa_handler = ignore };
	struct itimerval every = { .it_interval = { .tv_usec = 5000 }, .it_value = { .tv_usec = 5000 } };

	check(sigaction(SIGALRM, &action, NULL), "sigaction");
	check(setitimer(ITIMER_REAL, &every, NULL), "setitimer");
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: vmm IMAGE\n");
		return 2;
	}
	create_machine();
	load(argv[1]);
	make_page_tables();
	set_long_mode();
	start_signals();

	int status = run_guest();

	report();
	return status;
}
