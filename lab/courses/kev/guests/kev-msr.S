// Writes two elements to the queue behind MSR 0xABC, and reads them again.
#include "kev.inc"
    mov ecx, FIFO_MSR
    mov eax, 0x22222222
    mov edx, 0x44444444
    wrmsr
    mov eax, 0x66666666
    xor edx, edx
    wrmsr

    rdmsr
    expect eax, 0x22222222
    expect edx, 0x44444444
    rdmsr
    expect eax, 0x66666666
    expect edx, 0
    finish
wrong:
    hlt
