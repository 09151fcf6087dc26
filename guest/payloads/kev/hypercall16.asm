; Prints with one hypercall in real mode, where the address is an offset in DS.
%include "kev.inc"
bits 16
section .start exec
    mov ax, 0x100
    mov ds, ax
    mov edi, text - 0x1000
    mov esi, length
    hypercall PRINT
    cmp eax, length
    must_be_equal
    xor ax, ax
    mov ds, ax
    mov ax, 42
    mov [0x400], ax
    hlt
.wrong:
    hlt
text: db "Hello guest os!", 10
length equ $ - text
