/*
 * Chapter 3: memory for the guest.
 *
 *   ./vmm SIZE ADDRESS    slot 0 has SIZE bytes at the guest physical address 0, slot 1 has 64 KiB at ADDRESS
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { PAGE = 0x1000, SECOND_SIZE = 0x10000 };

static void fail(const char *subject)
{
	fprintf(stderr, "vmm: %s: %s\n", subject, strerror(errno));
	exit(1);
}

/* Opens KVM, checks its version, and returns the descriptor of a new VM. */
static int create_vm(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		fail("/dev/kvm");
	if (ioctl(kvm, KVM_GET_API_VERSION, 0) != KVM_API_VERSION) {
		fprintf(stderr, "vmm: /dev/kvm is not KVM with version %d\n", KVM_API_VERSION);
		exit(1);
	}
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);

	if (vm < 0)
		fail("KVM_CREATE_VM");
	return vm;
}

/* Allocates pages that only this program uses. They are zeroed. */
static void *allocate(size_t size)
{
	void *memory = NULL;

	//{
	//= (void)size;
	//= /* TODO: call mmap for size bytes that can be read and written: MAP_PRIVATE | MAP_ANONYMOUS, descriptor -1, offset 0. */
	//= /* TODO: if it returns MAP_FAILED, call fail("mmap"). */
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		fail("mmap");
	//}
	return memory;
}

/* Puts memory at a guest physical address. Returns the result of ioctl: 0, or -1 with the reason in errno. */
static int set_slot(int vm, uint32_t slot, uint64_t address, size_t size, void *memory)
{
	//{
	//= (void)vm, (void)slot, (void)address, (void)size, (void)memory;
	//= /* TODO: fill a struct kvm_userspace_memory_region: slot, guest_phys_addr, memory_size, userspace_addr. */
	//= /* TODO: call KVM_SET_USER_MEMORY_REGION on the VM with its address, and return what ioctl returns. */
	//= errno = ENOSYS;
	//= return -1;
	struct kvm_userspace_memory_region region = { .slot = slot,
						      .guest_phys_addr = address,
						      .memory_size = size,
						      .userspace_addr = (uintptr_t)memory };

	return ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
	//}
}

int main(int argc, char **argv)
{
	if (argc != 3) {
		fprintf(stderr, "usage: vmm SIZE ADDRESS\n");
		return 2;
	}
	size_t size = strtoull(argv[1], NULL, 0);
	uint64_t address = strtoull(argv[2], NULL, 0);
	int vm = create_vm();

	if (set_slot(vm, 0, 0, size, allocate(size)) != 0)
		fail("slot 0");
	//{
	//= /* TODO: allocate SECOND_SIZE bytes, and make them slot 1 at address. If that fails, call fail("slot 1"). */
	//= (void)address;
	if (set_slot(vm, 1, address, SECOND_SIZE, allocate(SECOND_SIZE)) != 0)
		fail("slot 1");
	//}

	/* Two slots must not cover the same guest physical address. */
	//{
	//= /* TODO: try to put a new page (PAGE bytes) as slot 2 at the last page of slot 0. KVM refuses it: set_slot returns -1,
	//=  * and errno is EEXIST. Then print "slot 2: refused" and a newline to stdout. Otherwise end with status 1. */
	if (set_slot(vm, 2, size - PAGE, PAGE, allocate(PAGE)) == 0 || errno != EEXIST) {
		fprintf(stderr, "vmm: slot 2 was not refused as it should be\n");
		return 1;
	}
	printf("slot 2: refused\n");
	//}
	return 0;
}
