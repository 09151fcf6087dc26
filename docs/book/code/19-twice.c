// ANCHOR: all
// A double fetch: a thread plays the guest, and changes a length between the check and the use of the VMM.
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>

enum { BUFFER = 64 };

static volatile uint32_t length = 16;
static volatile int is_over;

// The guest: the length is right, wrong, right, wrong.
static void *guest(void *argument)
{
	while (!is_over) {
		length = 4096;
		sched_yield();
		length = 16;
		sched_yield();
	}
	return argument;
}

int main(void)
{
	pthread_t thread;
	if (pthread_create(&thread, NULL, guest, NULL) != 0)
		return 1;
	// ANCHOR: vmm
	// The VMM: a length that is too large is refused.
	for (;;) {
		if (length > BUFFER)
			continue;
		sched_yield(); // anything else that takes a moment
		uint32_t used = length;
		if (used > BUFFER) {
			printf("checked: at most %d, used: %u\n", BUFFER, used);
			break;
		}
	}
	// ANCHOR_END: vmm
	is_over = 1;
	pthread_join(thread, NULL);
	return 0;
}
// ANCHOR_END: all
