/* ANCHOR: all */
#include <stdint.h>
#include <stdio.h>

/* ANCHOR: queue */
enum { LENGTH = 4 };

/* The producer changes `head` and the slots. The consumer changes `tail`. */
static struct queue {
	uint32_t head, tail;
	char slots[LENGTH];
} queue;

static uint32_t after(uint32_t slot)
{
	return slot + 1 == LENGTH ? 0 : slot + 1;
}

static int push(char element)
{
	if (after(queue.head) == queue.tail)
		return -1;			/* full */
	queue.slots[queue.head] = element;
	queue.head = after(queue.head);
	return 0;
}

static int take(char *element)
{
	if (queue.tail == queue.head)
		return -1;			/* empty */
	*element = queue.slots[queue.tail];
	queue.tail = after(queue.tail);
	return 0;
}
/* ANCHOR_END: queue */

/* Each argument is one step: a minus takes an element, and each other letter is pushed. */
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; ++i) {
		char element = argv[i][0];
		int failed = element == '-' ? take(&element) : push(element);

		printf("%s%c: ", argv[i][0] == '-' ? "take " : "push ", failed && argv[i][0] == '-' ? ' ' : element);
		printf("head %u, tail %u%s\n", queue.head, queue.tail,
		       !failed ? "" : argv[i][0] == '-' ? ", it was empty" : ", it was full");
	}
	return 0;
}
/* ANCHOR_END: all */
