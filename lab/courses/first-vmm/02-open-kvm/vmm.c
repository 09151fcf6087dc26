/*
 * Chapter 2: a program that opens KVM and makes a virtual machine.
 *
 *   ./vmm [DEVICE]        DEVICE is /dev/kvm if it is left out
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

/* Ends the program with status 1 and a message, such as "vmm: /dev/kvm: Permission denied". */
static void fail(const char *subject)
{
	fprintf(stderr, "vmm: %s: %s\n", subject, strerror(errno));
	exit(1);
}

/* Opens the device, and returns its descriptor. */
static int open_kvm(const char *device)
{
	int kvm = -1;

	//{
	//= (void)device;
	//= /* TODO: open the device for reading and writing, and put the descriptor into kvm. If open fails, call fail(device). */
	kvm = open(device, O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		fail(device);
	//}
	return kvm;
}

/* Checks that the device speaks the version of the interface that this program knows, and prints the version. */
static void check_version(int kvm, const char *device)
{
	//{
	//= (void)kvm, (void)device;
	//= /* TODO: call KVM_GET_API_VERSION. If ioctl returns -1, the device is not KVM: call fail(device). */
	int version = ioctl(kvm, KVM_GET_API_VERSION, 0);

	if (version < 0)
		fail(device);
	//= /* TODO: if the version is not KVM_API_VERSION, print a message to stderr, and end the program with status 1. */
	if (version != KVM_API_VERSION) {
		fprintf(stderr, "vmm: %s has version %d of KVM's interface, not %d\n", device, version, KVM_API_VERSION);
		exit(1);
	}
	//= /* TODO: print "KVM API version 12" and a newline to stdout, with the number that KVM has returned. */
	printf("KVM API version %d\n", version);
	//}
}

/* Checks that KVM takes memory of this program, and prints the number of memory slots. */
static void check_extensions(int kvm)
{
	//{
	//= (void)kvm;
	//= /* TODO: call KVM_CHECK_EXTENSION with KVM_CAP_USER_MEMORY. If the result is 0 or less, print a message to stderr,
	//=  * and end the program with status 1. */
	if (ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) <= 0) {
		fprintf(stderr, "vmm: KVM lacks the extension KVM_CAP_USER_MEMORY\n");
		exit(1);
	}
	//= /* TODO: call KVM_CHECK_EXTENSION with KVM_CAP_NR_MEMSLOTS, and print the result as "memory slots: 509". */
	printf("memory slots: %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_MEMSLOTS));
	//}
}

/* Makes a virtual machine, and returns its descriptor. */
static int create_vm(int kvm)
{
	int vm = -1;

	//{
	//= (void)kvm;
	//= /* TODO: call KVM_CREATE_VM with the argument 0, and put the descriptor into vm. */
	//= /* TODO: if it fails, call fail("KVM_CREATE_VM"). */
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		fail("KVM_CREATE_VM");
	//}
	return vm;
}

int main(int argc, char **argv)
{
	const char *device = argc > 1 ? argv[1] : "/dev/kvm";
	int kvm = open_kvm(device);

	check_version(kvm, device);
	check_extensions(kvm);
	create_vm(kvm);
	return 0;
}
