// A guest that stores through a wrong pointer.
struct list {
	struct list *next;
	int value;
};
static struct list third = { (struct list *)0x4000000000, 3 }, second = { &third, 2 }, first = { &second, 1 };
static volatile int total;

__attribute__((noinline)) static void add(struct list *item)
{
	total += item->value;
}

__attribute__((noinline)) static void add_all(struct list *list)
{
	for (struct list *item = list; item; item = item->next)
		add(item);
}

void _start(void)
{
	add_all(&first);
	for (;;)
		__asm__ volatile("hlt");
}
