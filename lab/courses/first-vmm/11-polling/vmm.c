/*
 * Chapter 11: a SIMVIRTIO device in a thread, which looks at the window itself. The guest makes no exit for it.
 *
 *   ./vmm IMAGE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line. */
enum { HALTED = 0, TRIPLE_FAULT = 3, UNEXPECTED_EXIT = 4 };

/* A write to this port ends the guest, with the status that it writes. */
enum { EXIT_PORT = 0xf4 };

/* The addresses of SIMVIRTIO. The window begins where the first memory slot ends. */
enum { DEVICE_TABLE = 0x1000a, TX_BUFFER = 0x11000, WINDOW = 0x100000 };
/* The length of a queue in bytes. It holds one byte less. */
enum { QUEUE = 16 };
/* The time between two looks of the device, in microseconds. It is long here, so that the driver is always the faster one. */
enum { NAP = 5000 };
enum { MAGIC = 0x74726976 };
/* The states of the device, and what the driver says. */
enum { DEVICE_RESET = 0, DEVICE_CONFIG = 2, DEVICE_READY = 4, DEVICE_BROKEN = 0x40 };
enum { DRIVER_ACK = 0, DRIVER = 2, DRIVER_OK = 4 };

/* The window. */
struct __attribute__((packed, aligned(8))) window {
	uint32_t magic;
	uint16_t max_queue_len;
	uint8_t device_status, driver_status, queue_selector, q0_ctl, q1_ctl;
	uint8_t reserved[5];
	uint32_t tx_head, tx_tail, rx_head, rx_tail;
};
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

/* The window. Two threads use it at the same time, so `volatile`: each access in the source is one in the program. */
static volatile struct window *window;
static bool is_reset;

/* Makes the window. */
static void create_device(void)
{
	//{
	//= /*
	//=  * TODO 1: this window is memory of the program, and the guest cannot reach it. Make it memory of the guest: one page
	//=  * at WINDOW, in slot 1 (add_memory). Then an access makes no exit.
	//=  */
	//= window = map(PAGE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	window = add_memory(1, WINDOW, PAGE);
	//}
	window->magic = MAGIC;
	window->max_queue_len = QUEUE;
}

/* Chapter 10: adds the device to the table in the guest's memory. */
static void add_to_table(void)
{
	uint64_t address = WINDOW;
	uint16_t count = 1;

	memcpy(memory + DEVICE_TABLE + 8, &address, sizeof(address));
	memcpy(memory + DEVICE_TABLE, &count, sizeof(count));
}

/* Shows a status. The driver sees it after all that was stored before it, such as the device table. */
static void set_status(uint8_t status)
{
	__atomic_store_n(&window->device_status, status, __ATOMIC_RELEASE);
}

/* Chapter 10: takes one byte that the driver has sent. */
static void take(uint8_t byte)
{
	if (window->device_status == DEVICE_READY) {
		putchar(byte);
	} else if (byte == 'R') {
		set_status(DEVICE_RESET);
		is_reset = true;
	} else if (byte == 'C' && window->device_status == DEVICE_CONFIG) {
		return;
	} else if (byte == 'C' && is_reset && window->driver_status == DRIVER_ACK) {
		add_to_table();
		set_status(DEVICE_CONFIG);
	} else {
		set_status(DEVICE_BROKEN);
	}
}

/* Looks at the window once. */
static void serve(void)
{
	uint32_t head, tail = window->tx_tail;

	//{
	//= /*
	//=  * TODO 2: load window->tx_head into `head` with __atomic_load_n(..., __ATOMIC_ACQUIRE). So all that the driver stored
	//=  * before its head, the byte itself and driver_status, is seen after it.
	//=  */
	//= head = tail;
	head = __atomic_load_n(&window->tx_head, __ATOMIC_ACQUIRE);
	//}
	if (head >= QUEUE || tail >= QUEUE)
		set_status(DEVICE_BROKEN);
	if (window->device_status == DEVICE_CONFIG && window->driver_status == DRIVER_OK)
		set_status(DEVICE_READY);
	while (window->device_status != DEVICE_BROKEN && tail != head) {
		take(((volatile uint8_t *)memory)[TX_BUFFER + tail]);
		tail = (tail + 1) % QUEUE;
		//{
		//= /*
		//=  * TODO 3: store `tail` in window->tx_tail with __atomic_store_n(..., __ATOMIC_RELEASE): what the byte has changed
		//=  * comes before it.
		//=  */
		__atomic_store_n(&window->tx_tail, tail, __ATOMIC_RELEASE);
		//}
	}
	fflush(stdout);
}

/* True when the guest has ended. */
static bool has_ended;

/* The thread of the device. */
static void *poll_window(void *argument)
{
	(void)argument;
	//{
	//= /*
	//=  * TODO 4: call serve() again and again until __atomic_load_n(&has_ended, __ATOMIC_ACQUIRE) is true. Sleep after each
	//=  * look (usleep(NAP)), so that the thread does not need a whole processor.
	//=  */
	//= (void)serve;
	while (!__atomic_load_n(&has_ended, __ATOMIC_ACQUIRE)) {
		serve();
		usleep(NAP);
	}
	//}
	return NULL;
}

/* Chapter 8: runs the guest until it ends. Returns the exit status of this program. */
static int run_guest(void)
{
	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);

		if (result < 0 && errno == EINTR)
			continue;
		check(result, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return HALTED;
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == EXIT_PORT)
				return *((uint8_t *)run + run->io.data_offset);
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == DEBUG_PORT)
				fwrite((char *)run + run->io.data_offset, run->io.size, run->io.count, stdout);
			break;
		case KVM_EXIT_SHUTDOWN:
			fprintf(stderr, "vmm: the guest died of a triple fault\n");
			return TRIPLE_FAULT;
		default:
			fprintf(stderr, "vmm: unexpected exit: reason %u\n", run->exit_reason);
			return UNEXPECTED_EXIT;
		}
	}
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
	create_device();

	pthread_t poller;

	if (pthread_create(&poller, NULL, poll_window, NULL)) {
		fprintf(stderr, "vmm: pthread_create failed\n");
		return 1;
	}

	int status = run_guest();

	__atomic_store_n(&has_ended, true, __ATOMIC_RELEASE);
	//{
	//= /*
	//=  * TODO 5: the guest may end right after its last store. Wait for the thread (pthread_join), and then look at the window
	//=  * once more.
	//=  */
	pthread_join(poller, NULL);
	serve();
	//}
	return status;
}
