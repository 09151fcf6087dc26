struct { volatile int numbers[4]; volatile int answer; } data = { .answer = 42 };

__attribute__((noinline)) void fill(int count) {
    for (int i = 0; i < count; i++)
        data.numbers[i] = i;
}

void _start(void) {
    fill(5);
    for (;;) __asm__ volatile("hlt");
}
