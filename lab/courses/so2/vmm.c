/*
 * Assignment 7 of SO2: a virtual machine monitor on KVM. README.md says which part earns which points.
 *
 *   ./vmm real|long|simvirtio
 *   ./vmm-polling polling        the same source, built with -DUSE_POOLING
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "device.h"
#include "queue.h"
#include "vcpu.h"

#define MEM_SIZE 0x100000
#define PAGE_SIZE 4096
/* The guest leaves its result here, and in RAX. */
#define RESULT_ADDRESS 0x400
#define RESULT 42
#define CONSOLE_PORT 0xe9

#ifdef USE_POOLING
static const bool use_pooling = true;
#else
static const bool use_pooling;
#endif

typedef struct vm {
	int sys_fd;
	int fd;
	char *mem;
} virtual_machine;

typedef struct vcpu {
	int fd;
	struct kvm_run *kvm_run;
} virtual_cpu;

/* The guests of the folder guests. The linker puts them into the program. */
extern const char guest16[], guest16_end[], guest64[], guest64_end[], driver64[], driver64_end[];

static virtual_machine vm = { .sys_fd = -1, .fd = -1 };
static virtual_cpu vcpu = { .fd = -1 };
/* The page at WINDOW_ADDRESS, or NULL if the VM has no device. */
static window_t *window;
/* The number of exits. */
static unsigned long exits;

/* Ends the program unless a step has succeeded. */
static void need(bool good, const char *step)
{
	if (good)
		return;
	fprintf(stderr, "%s failed: %s\n", step, strerror(errno));
	exit(1);
}

/* Allocates zeroed memory for the guest. */
static void *allocate(size_t size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	need(memory != MAP_FAILED, "mmap");
	/* Only a hint: a kernel without KSM refuses it. */
	madvise(memory, size, MADV_MERGEABLE);
	return memory;
}

/* Shows memory to the guest, at a guest physical address. Each piece has a slot of its own. */
static void add_memory(uint32_t slot, uint64_t address, size_t size, void *memory)
{
	//{
	//= /* TODO 1.2: Describe the memory in a struct kvm_userspace_memory_region. Call KVM_SET_USER_MEMORY_REGION with it. */
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = address,
		.memory_size = size,
		.userspace_addr = (uintptr_t)memory,
	};

	need(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region) == 0, "KVM_SET_USER_MEMORY_REGION");
	//}
}

static void create_vm(void)
{
	vm.sys_fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(vm.sys_fd >= 0, "open /dev/kvm");
	need(ioctl(vm.sys_fd, KVM_GET_API_VERSION, 0) == KVM_API_VERSION, "KVM_GET_API_VERSION");
	//{
	//= /*
	//=  * TODO 1.1: Make the VM with KVM_CREATE_VM on vm.sys_fd. Its descriptor is vm.fd. Then call KVM_SET_TSS_ADDR with
	//=  * 0xfffbd000 on vm.fd: Intel's processors need it. Stop the program with need() if a call fails.
	//=  */
	vm.fd = ioctl(vm.sys_fd, KVM_CREATE_VM, 0);
	need(vm.fd >= 0, "KVM_CREATE_VM");
	need(ioctl(vm.fd, KVM_SET_TSS_ADDR, 0xfffbd000) == 0, "KVM_SET_TSS_ADDR");
	//}
	vm.mem = allocate(MEM_SIZE);
	add_memory(0, 0, MEM_SIZE, vm.mem);
}

static void create_vcpu(void)
{
	//{
	//= /*
	//=  * TODO 1.3: Make the vCPU with KVM_CREATE_VCPU on vm.fd. Its descriptor is vcpu.fd. KVM_GET_VCPU_MMAP_SIZE on vm.sys_fd
	//=  * returns the size of struct kvm_run. Map that many bytes of vcpu.fd (PROT_READ | PROT_WRITE, MAP_SHARED) to
	//=  * vcpu.kvm_run.
	//=  */
	int size = ioctl(vm.sys_fd, KVM_GET_VCPU_MMAP_SIZE, 0);

	need(size > 0, "KVM_GET_VCPU_MMAP_SIZE");
	vcpu.fd = ioctl(vm.fd, KVM_CREATE_VCPU, 0);
	need(vcpu.fd >= 0, "KVM_CREATE_VCPU");
	vcpu.kvm_run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu.fd, 0);
	need(vcpu.kvm_run != MAP_FAILED, "mmap of struct kvm_run");
	//}
}

/* The guest begins at address 0. */
static void set_regs(uint64_t rsp)
{
	//{
	//= /* TODO 1.4: Call KVM_SET_REGS with a struct kvm_regs: rip is 0, rflags is 2 (bit 1 is always 1), rsp is the parameter. */
	struct kvm_regs regs = { .rip = 0, .rflags = 2, .rsp = rsp };

	need(ioctl(vcpu.fd, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
	//}
}

static void setup_real_mode(void)
{
	//{
	//= /*
	//=  * TODO 1.5: After reset the first instruction is at cs.base + rip = 0xffff0000 + 0xfff0, where the VM has no memory. Get
	//=  * the segment registers with KVM_GET_SREGS, set cs.base and cs.selector to 0, and call KVM_SET_SREGS.
	//=  */
	struct kvm_sregs sregs;

	need(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	need(ioctl(vcpu.fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	//}
	set_regs(0x8000);
}

/* Writes page tables that map the first 1 GiB to itself, with pages of 2 MiB. Returns the address of the first table. */
static uint64_t write_page_tables(void)
{
	//{
	//= /*
	//=  * TODO 2.1: Choose three pages of vm.mem for the tables, at multiples of 4096 from 0x1000 up. Entry 0 of the PML4 is
	//=  * the address of the PDPT, and entry 0 of the PDPT that of the page directory, both | PDE64_PRESENT | PDE64_RW. Entry
	//=  * n of the page directory is n * 2 MiB | PDE64_PRESENT | PDE64_RW | PDE64_PS, for all n below 512. Return the address
	//=  * of the PML4.
	//=  */
	//= return 0;
	const uint64_t pml4 = 0x2000, pdpt = 0x3000, pd = 0x4000;
	uint64_t *entries = (uint64_t *)(vm.mem + pd);

	*(uint64_t *)(vm.mem + pml4) = pdpt | PDE64_PRESENT | PDE64_RW;
	*(uint64_t *)(vm.mem + pdpt) = pd | PDE64_PRESENT | PDE64_RW;
	for (uint64_t n = 0; n < 512; ++n)
		entries[n] = n << 21 | PDE64_PRESENT | PDE64_RW | PDE64_PS;
	return pml4;
	//}
}

static void setup_long_mode(void)
{
	struct kvm_sregs sregs;

	need(ioctl(vcpu.fd, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cr3 = write_page_tables();
	//{
	//= /*
	//=  * TODO 2.2: Set CR4_PAE in cr4, CR0_PE and CR0_PG in cr0 (also MP, ET, NE, WP and AM, as systems do), and EFER_LME and
	//=  * EFER_LMA in efer: one of the two alone is an error.
	//=  */
	sregs.cr4 = CR4_PAE;
	sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG;
	sregs.efer = EFER_LME | EFER_LMA;
	//}
	//{
	//= /*
	//=  * TODO 2.3: Make cs a 64-bit code segment: base 0, limit 0xffffffff, selector 8, type 11, and present, s, l and g 1.
	//=  * Make ds, es, fs, gs and ss data segments: selector 16, type 3, present, db, s and g 1. l and db of cs are never both 1.
	//=  */
	struct kvm_segment segment = {
		.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1,
	};

	sregs.cs = segment;
	segment.selector = 16;
	segment.type = 3;
	segment.l = 0;
	segment.db = 1;
	sregs.ds = segment;
	sregs.es = segment;
	sregs.fs = segment;
	sregs.gs = segment;
	sregs.ss = segment;
	//}
	need(ioctl(vcpu.fd, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	set_regs(1 << 20);
}

static void add_device(void)
{
	//{
	//= /*
	//=  * TODO 3.2: The device table is at DEVICE_TABLE_ADDRESS of the guest's memory. Add WINDOW_ADDRESS to it, unless it is
	//=  * there already. Write the address first, and then the count.
	//=  */
	device_table_t *table = (device_table_t *)(vm.mem + DEVICE_TABLE_ADDRESS);
	uint16_t count = table->count;

	for (int i = 0; i < count && i < MAX_DEVICES; ++i)
		if (table->device_addresses[i] == WINDOW_ADDRESS)
			return;
	if (count >= MAX_DEVICES)
		return;
	table->device_addresses[count] = WINDOW_ADDRESS;
	table->count = count + 1;
	//}
}

/* Handles a byte that the driver has sent: a command before READY, and afterwards a letter of its message. */
static void handle_byte(q_elem_t byte)
{
	volatile device_t *device = &window->device;
	//{
	//= /*
	//=  * TODO 3.3: In READY, print the byte. Before: 'R' sets device_status to DEVICE_RESET. 'C' after an 'R', while
	//=  * driver_status is DRIVER_ACK, calls add_device() and then sets device_status to DEVICE_CONFIG.
	//=  */
	static bool has_reset;

	if (device->device_status == DEVICE_READY) {
		putchar(byte);
	} else if (byte == 'R') {
		device->device_status = DEVICE_RESET;
		has_reset = true;
	} else if (byte == 'C' && has_reset && device->driver_status == DRIVER_ACK) {
		add_device();
		device->device_status = DEVICE_CONFIG;
	}
	//}
}

/* Does what the driver has asked for: it is called after each store to the window, or again and again. */
static void serve_device(void)
{
	simqueue_t queue = {
		.q_ctrl = &window->tx,
		.maxlen = QUEUE_LEN,
		.buffer = (q_elem_t *)(vm.mem + TX_BUFFER_ADDRESS),
	};
	q_elem_t byte;

	//{
	//= /* TODO 3.4: If device_status is DEVICE_CONFIG and driver_status is DRIVER_OK, set device_status to DEVICE_READY. */
	volatile device_t *device = &window->device;

	if (device->device_status == DEVICE_CONFIG && device->driver_status == DRIVER_OK)
		device->device_status = DEVICE_READY;
	//}
	while (circ_bbuf_pop(&queue, &byte) == 0)
		handle_byte(byte);
}

static void create_device(void)
{
	window = allocate(PAGE_SIZE);
	//{
	//= /* TODO 3.5: Write MAGIC_VALUE and QUEUE_LEN into magic and max_queue_len of window->device. */
	window->device.magic = MAGIC_VALUE;
	window->device.max_queue_len = QUEUE_LEN;
	//}
	if (!use_pooling)
		return;
	//{
	//= /* TODO 4.1: Make the window memory of the guest, in slot 1 at WINDOW_ADDRESS: then an access to it is no exit. */
	add_memory(1, WINDOW_ADDRESS, PAGE_SIZE, window);
	//}
}

/* A thread that looks at the window while the guest runs. */
static void *poll_device(void *stop)
{
	//{
	//= /*
	//=  * TODO 4.2: Call serve_device() again and again, until *(atomic_bool *)stop is true (atomic_load). Call sched_yield()
	//=  * after each time: a host with one CPU needs it. Call serve_device() once more at the end, for the last bytes.
	//=  */
	while (!atomic_load((atomic_bool *)stop)) {
		serve_device();
		sched_yield();
	}
	serve_device();
	//}
	return NULL;
}

static void handle_mmio(void)
{
	uint64_t offset = vcpu.kvm_run->mmio.phys_addr - WINDOW_ADDRESS;
	size_t len = vcpu.kvm_run->mmio.len;

	if (!window || offset >= sizeof(*window) || len > sizeof(*window) - offset) {
		fprintf(stderr, "MMIO at 0x%llx, where nothing is\n", (unsigned long long)vcpu.kvm_run->mmio.phys_addr);
		exit(1);
	}
	//{
	//= /*
	//=  * TODO 3.6: If mmio.is_write is 1, copy the len bytes of mmio.data to this offset of the window, and call
	//=  * serve_device(). Otherwise copy len bytes of the window to mmio.data: they are the value that the guest reads.
	//=  */
	if (vcpu.kvm_run->mmio.is_write) {
		memcpy((char *)window + offset, vcpu.kvm_run->mmio.data, len);
		serve_device();
	} else {
		memcpy(vcpu.kvm_run->mmio.data, (char *)window + offset, len);
	}
	//}
}

static void handle_io(void)
{
	//{
	//= /*
	//=  * TODO 1.7: If io.direction is KVM_EXIT_IO_OUT and io.port is CONSOLE_PORT, print the bytes: io.count elements of io.size
	//=  * bytes, which begin io.data_offset bytes after the start of struct kvm_run. Use fwrite, because a byte may be 0.
	//=  */
	const char *data = (char *)vcpu.kvm_run + vcpu.kvm_run->io.data_offset;

	if (vcpu.kvm_run->io.direction == KVM_EXIT_IO_OUT && vcpu.kvm_run->io.port == CONSOLE_PORT)
		fwrite(data, vcpu.kvm_run->io.size, vcpu.kvm_run->io.count, stdout);
	//}
}

/* Runs the guest until it halts. */
static void run(void)
{
	for (;;) {
		//{
		//= /*
		//=  * TODO 1.6: Call KVM_RUN on vcpu.fd. It returns at the next exit. Look at vcpu.kvm_run->exit_reason: KVM_EXIT_HLT is
		//=  * the end, KVM_EXIT_IO is for handle_io(), and KVM_EXIT_MMIO for handle_mmio(). Name any other reason on stderr, and
		//=  * end with exit(1).
		//=  * TODO 5: Count the exits in 'exits'. The HLT is one, too.
		//=  */
		//= return;
		need(ioctl(vcpu.fd, KVM_RUN, 0) == 0, "KVM_RUN");
		++exits;
		switch (vcpu.kvm_run->exit_reason) {
		case KVM_EXIT_HLT:
			return;
		case KVM_EXIT_IO:
			handle_io();
			break;
		case KVM_EXIT_MMIO:
			handle_mmio();
			break;
		default:
			fprintf(stderr, "unexpected exit: reason %u\n", vcpu.kvm_run->exit_reason);
			exit(1);
		}
		//}
	}
}

/* Checks the result. It has 'width' bytes: 2 in real mode, 8 in long mode. Returns the exit status of the program. */
static int finish(size_t width)
{
	//{
	//= /*
	//=  * TODO 1.8: Get the registers with KVM_GET_REGS. If rax and the first 'width' bytes at RESULT_ADDRESS are both RESULT,
	//=  * print "Finished vmm" and return 0. Otherwise say on stderr what they are, and return 1.
	//=  * TODO 5: Print "VM exits: N" before.
	//=  */
	//= return 1;
	uint64_t result = 0;
	struct kvm_regs regs;

	printf("VM exits: %lu\n", exits);
	need(ioctl(vcpu.fd, KVM_GET_REGS, &regs) == 0, "KVM_GET_REGS");
	memcpy(&result, vm.mem + RESULT_ADDRESS, width);
	if (regs.rax != RESULT || result != RESULT) {
		fprintf(stderr, "wrong result: RAX is %llu, and the value at 0x400 is %llu\n", regs.rax,
			(unsigned long long)result);
		return 1;
	}
	printf("Finished vmm\n");
	return 0;
	//}
}

/* Runs the guest, and beside it the thread that looks at the window. */
static void run_polling(void)
{
	static atomic_bool stop;
	pthread_t poller;

	need(pthread_create(&poller, NULL, poll_device, &stop) == 0, "pthread_create");
	run();
	atomic_store(&stop, true);
	pthread_join(poller, NULL);
}

int main(int argc, char **argv)
{
	const char *task = argc > 1 ? argv[1] : "";
	bool is_real = !strcmp(task, "real");
	bool has_device = !strcmp(task, use_pooling ? "polling" : "simvirtio");

	if (!is_real && !has_device && strcmp(task, "long")) {
		fprintf(stderr, "usage: %s real|long|%s\n", argv[0], use_pooling ? "polling" : "simvirtio");
		return 2;
	}
	const char *guest = is_real ? guest16 : has_device ? driver64 : guest64;
	const char *end = is_real ? guest16_end : has_device ? driver64_end : guest64_end;

	create_vm();
	create_vcpu();
	memcpy(vm.mem, guest, end - guest);
	if (is_real)
		setup_real_mode();
	else
		setup_long_mode();
	if (has_device)
		create_device();
	if (has_device && use_pooling)
		run_polling();
	else
		run();
	return finish(is_real ? 2 : 8);
}
