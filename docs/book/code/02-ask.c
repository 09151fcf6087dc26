#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <sys/ioctl.h>

int main(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0) {
		perror("/dev/kvm");
		return 1;
	}
	printf("recommended vCPUs: %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS));
	printf("most vCPUs: %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS));
	printf("interrupt controllers: %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IRQCHIP));
	printf("an extension that does not exist: %d\n", ioctl(kvm, KVM_CHECK_EXTENSION, 99999));
	return 0;
}
