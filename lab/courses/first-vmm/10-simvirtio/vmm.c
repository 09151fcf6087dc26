/*
 * Chapter 10: a SIMVIRTIO device, which acts at each exit for its window.
 *
 *   ./vmm IMAGE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line. */
enum { HALTED = 0, TRIPLE_FAULT = 3, UNEXPECTED_EXIT = 4 };

/* The addresses of SIMVIRTIO. The window begins where the memory of the guest ends, so each access to it is an exit. */
enum { DEVICE_TABLE = 0x1000a, TX_BUFFER = 0x11000, WINDOW = 0x100000 };
/* The length of a queue in bytes. It holds one byte less. */
enum { QUEUE = 16 };
enum { MAGIC = 0x74726976 };
/* The states of the device, and what the driver says. */
enum { DEVICE_RESET = 0, DEVICE_CONFIG = 2, DEVICE_READY = 4, DEVICE_BROKEN = 0x40 };
enum { DRIVER_ACK = 0, DRIVER = 2, DRIVER_OK = 4 };

/* The window. */
struct __attribute__((packed)) window {
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

static struct window window;
/* The device has taken an 'R', so that it may take a 'C'. */
static bool is_reset;

/* Fills the fields that the driver reads first. */
static void create_device(void)
{
	//{
	//= /* TODO 1: the window has the magic and the length of a queue. */
	//= (void)window;
	window.magic = MAGIC;
	window.max_queue_len = QUEUE;
	//}
}

/* Adds the device to the table in the guest's memory: 16 bits with the number of devices, and from 8 bytes after it 64 bits
 * with the address of each one. The table is not aligned, so bytes are copied. */
static void add_to_table(void)
{
	uint64_t address = WINDOW;
	uint16_t count = 1;

	memcpy(memory + DEVICE_TABLE + 8, &address, sizeof(address));
	memcpy(memory + DEVICE_TABLE, &count, sizeof(count));
}

/* Takes one byte that the driver has sent. */
static void take(uint8_t byte)
{
	//{
	//= /*
	//=  * TODO 2: in the state DEVICE_READY each byte is text: print it. In other states:
	//=  *   'R'  the state is DEVICE_RESET, and is_reset is true;
	//=  *   'C'  in the state DEVICE_CONFIG: nothing changes. Otherwise, if is_reset is true and the driver has stored
	//=  *        DRIVER_ACK: add_to_table, and then the state is DEVICE_CONFIG.
	//=  * Everything else is a mistake of the driver: the state is DEVICE_BROKEN.
	//=  */
	//= (void)byte;
	//= (void)is_reset;
	//= (void)add_to_table;
	if (window.device_status == DEVICE_READY) {
		putchar(byte);
	} else if (byte == 'R') {
		window.device_status = DEVICE_RESET;
		is_reset = true;
	} else if (byte == 'C' && window.device_status == DEVICE_CONFIG) {
		return;
	} else if (byte == 'C' && is_reset && window.driver_status == DRIVER_ACK) {
		add_to_table();
		window.device_status = DEVICE_CONFIG;
	} else {
		window.device_status = DEVICE_BROKEN;
	}
	//}
}

/* Looks at the window after the driver has stored to it. */
static void serve(void)
{
	//{
	//= /*
	//=  * TODO 3: a device in the state DEVICE_BROKEN does nothing. A tx_head that is not below QUEUE breaks it.
	//=  * In the state DEVICE_CONFIG, DRIVER_OK makes the device DEVICE_READY.
	//=  * Then take the bytes of the queue TX: while tx_tail is not tx_head, take(memory[TX_BUFFER + tx_tail]) and move
	//=  * tx_tail. After the last slot comes slot 0.
	//=  */
	//= (void)take;
	if (window.tx_head >= QUEUE)
		window.device_status = DEVICE_BROKEN;
	if (window.device_status == DEVICE_CONFIG && window.driver_status == DRIVER_OK)
		window.device_status = DEVICE_READY;
	while (window.device_status != DEVICE_BROKEN && window.tx_tail != window.tx_head) {
		take(memory[TX_BUFFER + window.tx_tail]);
		window.tx_tail = (window.tx_tail + 1) % QUEUE;
	}
	//}
	fflush(stdout);
}

/* Returns true if the driver may store there: to four bytes from driver_status on, and to tx_head and rx_tail. */
static bool may_store(uint64_t offset, uint32_t length)
{
	return (offset >= 7 && offset + length <= 11) || (length == 4 && (offset == 0x10 || offset == 0x1c));
}

/* Handles an access to an address without memory. */
static void access_address(void)
{
	uint64_t offset = run->mmio.phys_addr - WINDOW;
	uint32_t length = run->mmio.len;

	if (offset >= sizeof(window) || length > sizeof(window) - offset) {
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		return;
	}
	//{
	//= /*
	//=  * TODO 4: a load copies `length` bytes of the window from `offset` on to run->mmio.data. A store, if it is one that
	//=  * the driver may make (may_store), copies them to the window; then the device looks at it (serve).
	//=  */
	//= (void)may_store;
	//= serve();
	uint8_t *field = (uint8_t *)&window + offset;

	if (!run->mmio.is_write) {
		memcpy(run->mmio.data, field, length);
	} else if (may_store(offset, length)) {
		memcpy(field, run->mmio.data, length);
		serve();
	}
	//}
}

/* Chapter 9: handles an access to a port. The console is the only device. */
static void access_port(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t length = (size_t)run->io.size * run->io.count;

	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xff, length);
	else if (run->io.port == DEBUG_PORT)
		fwrite(data, 1, length, stdout);
	fflush(stdout);
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
			access_port();
			break;
		case KVM_EXIT_MMIO:
			access_address();
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
	return run_guest();
}
