/* A guest that stores through a wrong pointer, two calls deep. */
volatile int *const nowhere = (int *)0x4000000000;
volatile int sink;

__attribute__((noinline)) void crash(int value) {
    *nowhere = value;
    sink = 1;
}

__attribute__((noinline)) int compute(int value) {
    crash(value + 1);
    return sink;
}

void _start(void) {
    sink = compute(41);
    for (;;) __asm__ volatile("hlt");
}
