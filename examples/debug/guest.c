/* A guest to debug: it adds numbers, and halts with 42 in RAX and at 0x400, as `vmm run --verify` wants. */

volatile int total;

__attribute__((noinline)) int add(int value) {
    total += value;
    return total;
}

void _start(void) {
    for (int i = 1; i <= 6; i++)
        add(2 * i);
    *(volatile int *)0x400 = total;
    __asm__ volatile("hlt" ::"a"(total));
}
