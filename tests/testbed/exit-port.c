// Usage: exit-port NUMBER. Writes a byte to the machine's exit port, 0xf4. A shell cannot: Debian's kernel has no
// /dev/port.
static long call(long number, long a, long b, long c)
{
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return answer;
}

// The kernel puts argc, argv[0] and argv[1] on the stack, so argv[1] is the third word.
__attribute__((used)) void begin(const char **stack)
{
    unsigned char value = 0;
    for (const char *digit = (long)stack[0] > 1 ? stack[2] : ""; *digit; digit++) value = value * 10 + (*digit - '0');
    if (call(173 /* ioperm */, 0xf4, 1, 1) == 0) __asm__ volatile("outb %0, $0xf4" : : "a"(value));
    call(60 /* exit */, 1, 0, 0);
    for (;;);
}

__asm__(".global _start\n_start: mov %rsp, %rdi\nand $-16, %rsp\ncall begin\n");
