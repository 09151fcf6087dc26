/*
 * Chapter 8: a loop that has an answer for each exit.
 *
 *   ./vmm [--step] IMAGE
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

/* The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line. */
enum { HALTED = 0, TRIPLE_FAULT = 3, ENTRY_FAILED = 4, KVM_FAILED = 5, UNKNOWN_EXIT = 6 };
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

/* Handles an access to a port. */
static void access_port(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t length = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == DEBUG_PORT) {
		fwrite(data, 1, length, stdout);
		fflush(stdout);
		return;
	}
	//{
	//= /*
	//=  * TODO 1: no other port has a device. A read must give the guest bytes of 0xff: store `length` of them at `data`.
	//=  * A write has no effect. Say on stderr which port it was. Then the guest goes on.
	//=  */
	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xff, length);
	fprintf(stderr, "vmm: no device at port 0x%x\n", run->io.port);
	//}
}

/* Handles an access to an address without memory. */
static void access_address(void)
{
	//{
	//= /*
	//=  * TODO 2: the same for run->mmio: a read (is_write is 0) must find bytes of 0xff in run->mmio.data. The address is
	//=  * run->mmio.phys_addr.
	//=  */
	if (!run->mmio.is_write)
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
	fprintf(stderr, "vmm: no memory and no device at 0x%llx\n", run->mmio.phys_addr);
	//}
}

/* Runs the guest until it ends. Returns the exit status of this program. */
static int run_guest(void)
{
	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);

		//{
		//= /* TODO 3: a signal can come at any time. KVM_RUN then fails with EINTR, and the guest has to go on. */
		if (result < 0 && errno == EINTR)
			continue;
		//}
		check(result, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return HALTED;
		//{
		//= /*
		//=  * TODO 4: handle KVM_EXIT_IO (access_port) and KVM_EXIT_MMIO (access_address), after which the guest goes on;
		//=  * KVM_EXIT_SHUTDOWN (return TRIPLE_FAULT), KVM_EXIT_FAIL_ENTRY (return ENTRY_FAILED) and
		//=  * KVM_EXIT_INTERNAL_ERROR (return KVM_FAILED), each with its own message on stderr.
		//=  * Each other exit is UNKNOWN_EXIT, and the message has its number.
		//=  */
		//= case KVM_EXIT_IO:
			//= access_port();
			//= return HALTED;
		//= default:
			//= access_address();
			//= return HALTED;
		case KVM_EXIT_IO:
			access_port();
			break;
		case KVM_EXIT_MMIO:
			access_address();
			break;
		case KVM_EXIT_SHUTDOWN:
			fprintf(stderr, "vmm: the guest died of a triple fault\n");
			return TRIPLE_FAULT;
		case KVM_EXIT_FAIL_ENTRY:
			fprintf(stderr, "vmm: the processor does not enter the guest: reason 0x%llx\n",
				run->fail_entry.hardware_entry_failure_reason);
			return ENTRY_FAILED;
		case KVM_EXIT_INTERNAL_ERROR:
			fprintf(stderr, "vmm: KVM cannot go on: suberror %u\n", run->internal.suberror);
			return KVM_FAILED;
		default:
			fprintf(stderr, "vmm: unknown exit: reason %u\n", run->exit_reason);
			return UNKNOWN_EXIT;
		//}
		}
	}
}

static void ignore(int signal)
{
	(void)signal;
}

/* Makes KVM_RUN return every 10 ms: SIGALRM comes, and its handler does nothing. */
static void start_signals(void)
{
	struct sigaction action = { .sa_handler = ignore };
	struct itimerval every = { .it_interval = { .tv_usec = 10000 }, .it_value = { .tv_usec = 10000 } };

	check(sigaction(SIGALRM, &action, NULL), "sigaction");
	check(setitimer(ITIMER_REAL, &every, NULL), "setitimer");
}

/* Makes an exit after each instruction, which this VMM does not know: KVM_EXIT_DEBUG. Chapter 17 uses it. */
static void step(void)
{
	struct kvm_guest_debug debug = { .control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP };

	check(ioctl(vcpu, KVM_SET_GUEST_DEBUG, &debug), "KVM_SET_GUEST_DEBUG");
}

int main(int argc, char **argv)
{
	bool steps = argc == 3 && !strcmp(argv[1], "--step");

	if (argc != 2 && !steps) {
		fprintf(stderr, "usage: vmm [--step] IMAGE\n");
		return 2;
	}
	create_machine();
	load(argv[argc - 1]);
	make_page_tables();
	set_long_mode();
	if (steps)
		step();
	start_signals();
	return run_guest();
}
