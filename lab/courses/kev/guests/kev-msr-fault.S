// Reads and writes MSR 0xABD, which does not exist: each access must be an exception #GP.
#include "kev.inc"
    .set IDT, 0x14000

    // An interrupt gate for #GP, which is exception 13: the handler in the code segment 8.
    mov eax, offset fault
    mov edi, IDT + 13 * 16
    mov [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr eax, 16
    mov [rdi + 6], ax
    mov qword ptr [rdi + 8], 0
    lidt [idtr]

    xor ebx, ebx                            // counts the exceptions
    mov ecx, FIFO_MSR + 1
    rdmsr
    wrmsr
    expect ebx, 2
    finish
wrong:
    hlt

fault:
    inc ebx
    add rsp, 8                              // the error code
    add qword ptr [rsp], 2                  // both instructions have two bytes
    iretq

idtr:
    .word 14 * 16 - 1
    .quad IDT
