// Prints two texts through the printer at 0xCAFE0000: stores the address and the length, and then any byte to the third register,
// which has the result afterwards.
#include "kev.inc"
    .macro print text, length
    mov qword ptr [rbx], offset \text
    mov qword ptr [rbx + 8], \length
    mov byte ptr [rbx + 16], 1
    mov rax, [rbx + 16]
    expect rax, \length
    .endm

    mov ebx, PRINTER
    print text, 16
    print more, 12
    finish
wrong:
    hlt
text:
    .ascii "Hello guest os!\n"
more:
    .ascii "Hello mmio!\n"
