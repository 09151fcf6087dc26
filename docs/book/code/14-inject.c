// ANCHOR: all
// Wakes a guest from HLT with three interrupts: ./14-inject 14-wait.bin
#include "14-machine.h"

int main(int argc, char **argv)
{
	need(argc == 2, "usage: 14-inject IMAGE");
	create_vm();
	create_vcpu(argv[1]);
	// ANCHOR: loop
	int interrupts = 3;
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		if (wrote(0xe9)) {
			putchar(byte());
		} else if (run->exit_reason == KVM_EXIT_HLT) {
			printf("HLT: if_flag %d, ready %d\n", run->if_flag, run->ready_for_interrupt_injection);
			if (interrupts-- == 0)
				return 0;
			struct kvm_interrupt interrupt = { .irq = 0x40 };
			need(ioctl(vcpu, KVM_INTERRUPT, &interrupt) == 0, "KVM_INTERRUPT");
		} else {
			printf("exit reason %u\n", run->exit_reason);
			return 1;
		}
	}
	// ANCHOR_END: loop
}
// ANCHOR_END: all
