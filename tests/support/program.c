/* A guest for tests/gdb.rs, with symbols and lines. */

volatile int total;
__attribute__((noinline)) int add(int value) {
    total += value;
    return total;
}
void _start(void) {
    for (int i = 1; i <= 3; i++) add(i);
    __asm__ volatile("hlt" :: "a"(total));
}
