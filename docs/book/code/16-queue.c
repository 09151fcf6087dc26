// ANCHOR: all
// The two sides of a virtio queue, without a VM: a driver sends texts, and a device prints them.
#include <stdint.h>
#include <stdio.h>
#include <string.h>

enum { LENGTH = 4, NEXT = 1 };

// ANCHOR: parts
struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};
static struct {
	struct descriptor descriptors[LENGTH];
	struct {
		uint16_t flags, index, heads[LENGTH];
	} available;
	struct {
		uint16_t flags, index;
		struct {
			uint32_t head, length;
		} elements[LENGTH];
	} used;
} queue;
// ANCHOR_END: parts

// ANCHOR: driver
// The driver describes a text with descriptor `number`, and makes it available.
static void send(uint16_t number, const char *text)
{
	queue.descriptors[number] = (struct descriptor){ .address = (uintptr_t)text, .length = strlen(text) };
	queue.available.heads[queue.available.index % LENGTH] = number;
	queue.available.index++;
}
// ANCHOR_END: driver

// ANCHOR: device
// The device prints what is available, and reports each text as used. Its texts have one descriptor each.
static uint16_t taken;
static void notify(void)
{
	for (; taken != queue.available.index; taken++) {
		uint16_t head = queue.available.heads[taken % LENGTH];
		struct descriptor *descriptor = &queue.descriptors[head];
		printf("  device: descriptor %d: \"%.*s\"\n", head, (int)descriptor->length, (char *)(uintptr_t)descriptor->address);
		queue.used.elements[queue.used.index % LENGTH].head = head;
		queue.used.elements[queue.used.index % LENGTH].length = 0;
		queue.used.index++;
	}
}
// ANCHOR_END: device

static void show(const char *moment)
{
	printf("%s: available index %d, used index %d\n", moment, queue.available.index, queue.used.index);
}

int main(void)
{
	show("start");
	send(0, "one");
	send(1, "two");
	send(2, "three");
	show("after three texts");
	notify();
	show("after the notification");
	send(1, "four");
	send(0, "five");
	show("after two more");
	notify();
	show("after the notification");
	return 0;
}
// ANCHOR_END: all
