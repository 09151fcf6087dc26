/*
 * A VMM for the SO2 assignment, written from its text and from the contract in docs/grading.md: the right answer for the
 * tests of `vmm grade so2 --vmm`.
 *
 *   gcc -O1 -pthread -o so2-vmm so2_vmm.c
 *   so2-vmm real|long|simvirtio|polling
 *
 * Each mistake is one that students make: -DMISTAKE_CS, _LME, _TEXT, _READY, _POLLING, _COUNT, _REASON, _READS. The others
 * are for the tests: -DMISTAKE_ENDLESS, _CRASH, _FLOOD, _FORK, _SEED, _COPY, _MEDDLE, _ATTACK. The VMM may also be different, and right:
 * -DSTRUCT (the layout of the window), -DPROTECTED (32-bit code; only for hidden guests), -DQUEUE=n (the length of a queue).
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { RAM = 0x100000, RESULT = 0x400, DEVICE_TABLE = 0x1000a, TX_BUFFER = 0x11000, WINDOW = 0x100000, PAGE = 4096 };
enum { PML4 = 0x2000, PDPT = 0x3000, PD = 0x4000 };
enum { CR0_PE = 1, CR0_MP = 2, CR0_ET = 0x10, CR0_NE = 0x20, CR0_WP = 0x10000, CR0_AM = 0x40000, CR4_PAE = 0x20 };
enum { EFER_LME = 0x100, EFER_LMA = 0x400 };
#define CR0_PG 0x80000000u

/* The device of the assignment. With -DSTRUCT its fields are in the order of the struct, and otherwise of the table. */
enum { MAGIC_VALUE = 0x74726976, DEVICE_RESET = 0, DEVICE_CONFIG = 2, DEVICE_READY = 4 };
enum { DRIVER_ACK = 0, DRIVER = 2, DRIVER_OK = 4 };
#ifndef QUEUE
#define QUEUE 64
#endif

typedef struct __attribute__((packed)) device {
	uint32_t magic;
#ifdef STRUCT
	uint8_t device_status;
	uint8_t driver_status;
	uint8_t max_queue_len;
	uint8_t reserved;
#else
	uint16_t max_queue_len;
	uint8_t device_status;
	uint8_t driver_status;
#endif
	uint8_t queue_selector;
	uint8_t q0_ctl;
	uint8_t q1_ctl;
	uint8_t gap[5];
	uint32_t tx_head, tx_tail, rx_head, rx_tail;
} device_t;

typedef struct device_table {
	uint16_t count;
	uint64_t device_addresses[10];
} device_table_t;

typedef struct vm {
	int sys_fd, fd;
	char *mem;
} virtual_machine;

typedef struct vcpu {
	int fd;
	struct kvm_run *kvm_run;
} virtual_cpu;

static virtual_machine vm;
static virtual_cpu vcpu;
static volatile device_t *device;
static unsigned long exits;

static void need(bool good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

#include "so2_vmm/guests.h"

/* I.1: the VM and its memory. */
static void add_memory(int slot, uint64_t address, size_t size, void *memory)
{
	struct kvm_userspace_memory_region region = { .slot = slot,
						      .guest_phys_addr = address,
						      .memory_size = size,
						      .userspace_addr = (uintptr_t)memory };

	need(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
}

static char *allocate(size_t size)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	need(memory != MAP_FAILED, "mmap");
	madvise(memory, size, MADV_MERGEABLE);
	return memory;
}

static void create_vm(void)
{
	vm.sys_fd = open("/dev/kvm", O_RDWR);
	need(vm.sys_fd >= 0, "/dev/kvm");
	need(ioctl(vm.sys_fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "KVM_GET_API_VERSION");
	vm.fd = ioctl(vm.sys_fd, KVM_CREATE_VM, 0);
	need(vm.fd >= 0, "KVM_CREATE_VM");
	need(ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000) == 0, "KVM_SET_TSS_ADDR");
	vm.mem = allocate(RAM);
	add_memory(0, 0, RAM, vm.mem);
}

/* I.2: the vCPU. */
static void create_vcpu(void)
{
	int size = ioctl(vm.sys_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	need(size > 0, "KVM_GET_VCPU_MMAP_SIZE");
	vcpu.fd = ioctl(vm.fd, KVM_CREATE_VCPU, 0);
	need(vcpu.fd >= 0, "KVM_CREATE_VCPU");
	vcpu.kvm_run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
	need(vcpu.kvm_run != MAP_FAILED, "mmap of the vCPU");
}

static void set_regs(uint64_t rsp)
{
	struct kvm_regs regs = { .rip = 0, .rflags = 2, .rsp = rsp };

	need(ioctl(vcpu.fd, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

static void setup_real_mode(void)
{
	struct kvm_sregs sregs;

	need(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
#ifndef MISTAKE_CS
	sregs.cs.selector = 0;
	sregs.cs.base = 0;
#endif
	need(ioctl(vcpu.fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	set_regs(0);
}

static void setup_long_mode(bool has_lme)
{
	struct kvm_segment code = { .limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
	struct kvm_sregs sregs;

	*(uint64_t *)(vm.mem + PML4) = PDPT | 3;
	*(uint64_t *)(vm.mem + PDPT) = PD | 3;
	for (uint64_t page = 0; page < 4; ++page)
		((uint64_t *)(vm.mem + PD))[page] = page << 21 | 0x83;
	need(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
#ifdef PROTECTED
	code.l = 0;
	code.db = 1;
	sregs.cr0 = CR0_PE | CR0_ET;
	sregs.efer = has_lme ? 0 : EFER_LMA;
#else
	sregs.cr3 = PML4;
	sregs.cr4 = CR4_PAE;
	sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	sregs.efer = has_lme ? EFER_LME | EFER_LMA : EFER_LMA;
#endif
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	need(ioctl(vcpu.fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	set_regs(1 << 20);
}

/* SIMVIRTIO. */
static void initialize_device(void)
{
	device->magic = MAGIC_VALUE;
	device->max_queue_len = QUEUE;
}

static void add_device(void)
{
	device_table_t *table = (device_table_t *)(vm.mem + DEVICE_TABLE);

	for (int i = 0; i < table->count && i < 10; ++i)
		if (table->device_addresses[i] == WINDOW)
			return;
	if (table->count < 10)
		table->device_addresses[table->count++] = WINDOW;
}

static void take(uint8_t byte)
{
	static bool is_reset;

	if (device->device_status == DEVICE_READY) {
		putchar(byte);
		return;
	}
	if (byte == 'R') {
		device->device_status = DEVICE_RESET;
		is_reset = true;
	} else if (byte == 'C' && is_reset && device->driver_status == DRIVER_ACK) {
		add_device();
		device->device_status = DEVICE_CONFIG;
	}
}

/* Looks at the window, after each store to it or again and again. */
static void serve(void)
{
#ifndef MISTAKE_READY
	if (device->device_status == DEVICE_CONFIG && device->driver_status == DRIVER_OK)
		device->device_status = DEVICE_READY;
#endif
	while (device->tx_tail != device->tx_head && device->tx_head < QUEUE) {
		uint8_t byte = vm.mem[TX_BUFFER + device->tx_tail];

		take(byte);
		device->tx_tail = (device->tx_tail + 1) % QUEUE;
	}
}

static void *poll_device(void *stop)
{
	while (!atomic_load((atomic_bool *)stop)) {
		serve();
		sched_yield();
	}
	serve();
	return NULL;
}

static void access_window(void)
{
	uint64_t offset = vcpu.kvm_run->mmio.phys_addr - WINDOW;
	size_t length = vcpu.kvm_run->mmio.len;

	if (offset > sizeof(*device) || length > sizeof(*device) - offset) {
		memset(vcpu.kvm_run->mmio.data, 0xff, sizeof(vcpu.kvm_run->mmio.data));
		return;
	}
	if (vcpu.kvm_run->mmio.is_write) {
		memcpy((char *)device + offset, vcpu.kvm_run->mmio.data, length);
		serve();
		return;
	}
#ifndef MISTAKE_READS
	memcpy(vcpu.kvm_run->mmio.data, (char *)device + offset, length);
#endif
}

/* Text that the guest writes to port 0xe9. */
static void print(bool is_hard_coded)
{
	char *data = (char *)vcpu.kvm_run + vcpu.kvm_run->io.data_offset;
	static bool has_printed;

	if (vcpu.kvm_run->io.direction != KVM_EXIT_IO_OUT || vcpu.kvm_run->io.port != 0xe9)
		return;
	if (!is_hard_coded) {
		fwrite(data, vcpu.kvm_run->io.size, vcpu.kvm_run->io.count, stdout);
	} else if (!has_printed) {
		printf("Hello, world!\n");
		has_printed = true;
	}
}

static void run(bool is_hard_coded)
{
	for (;;) {
		need(ioctl(vcpu.fd, KVM_RUN, 0) == 0, "KVM_RUN");
		++exits;
		switch (vcpu.kvm_run->exit_reason) {
		case KVM_EXIT_HLT:
			return;
		case KVM_EXIT_IO:
			print(is_hard_coded);
			break;
		case KVM_EXIT_MMIO:
			if (device) {
				access_window();
				break;
			}
			/* fall through */
		default:
			fprintf(stderr, "unexpected exit: reason %u\n", vcpu.kvm_run->exit_reason);
			exit(1);
		}
	}
}

/* One KVM_RUN, as if the guest could leave only with hlt. */
static void run_once(void)
{
	need(ioctl(vcpu.fd, KVM_RUN, 0) == 0, "KVM_RUN");
	++exits;
}

static int finish(size_t width)
{
	struct kvm_regs regs;
	uint64_t word = 0;

#ifdef MISTAKE_COUNT
	++exits;
#endif
	printf("VM exits: %lu\n", exits);
	need(ioctl(vcpu.fd, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
	memcpy(&word, vm.mem + RESULT, width);
	if (regs.rax != 42 || word != 42) {
		printf("Wrong result: RAX is %llu, [0x400] is %lu\n", regs.rax, word);
		return 0;
	}
	printf("Finished vmm\n");
	return 0;
}

#include "so2_vmm/hostile.h"

int main(int argc, char **argv)
{
	const char *task = argc > 1 ? argv[1] : "";
	bool is_real = !strcmp(task, "real"), is_long = !strcmp(task, "long");
	bool is_polling = !strcmp(task, "polling"), has_device = is_polling || !strcmp(task, "simvirtio");
	bool is_once = false, has_lme = true, is_hard_coded = false;
	static atomic_bool stop;
	pthread_t poller;

#ifdef MISTAKE_HIDES
	/* Other processes of its user may not look at it. */
	prctl(PR_SET_DUMPABLE, 0);
#endif
	if (!is_real && !is_long && !has_device) {
		fprintf(stderr, "usage: so2-vmm real|long|simvirtio|polling\n");
		return 2;
	}
	misbehave();
#ifdef MISTAKE_LME
	has_lme = !is_long;
#endif
#ifdef MISTAKE_TEXT
	is_hard_coded = is_long;
#endif
#ifdef MISTAKE_REASON
	is_once = is_real;
#endif
#ifdef MISTAKE_POLLING
	is_polling = false;
#endif
	create_vm();
	create_vcpu();
	if (is_real)
		setup_real_mode();
	else
		setup_long_mode(has_lme);
	const char *guest = is_real ? guest16 : is_long ? guest64 : driver64;
	const char *end = is_real ? guest16_end : is_long ? guest64_end : driver64_end;
#ifdef MISTAKE_COPY
	(void)guest, (void)end;
#else
	memcpy(vm.mem, guest, end - guest);
#endif
	if (has_device) {
		device = (device_t *)allocate(PAGE);
		initialize_device();
	}
	if (is_polling) {
		add_memory(1, WINDOW, PAGE, (void *)device);
		need(pthread_create(&poller, NULL, poll_device, &stop) == 0, "pthread_create");
	}
	if (is_once)
		run_once();
	else
		run(is_hard_coded);
	if (is_polling) {
		atomic_store(&stop, true);
		pthread_join(poller, NULL);
	}
	return is_once ? (printf("VM exits: %lu\nFinished vmm\n", exits), 0) : finish(is_real ? 2 : 8);
}
