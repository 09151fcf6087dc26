; Prints with one hypercall in protected mode.
%include "kev.inc"
bits 32
section .start exec
    mov edi, text
    mov esi, length
    hypercall PRINT
    cmp eax, length
    must_be_equal
    mov eax, 42
    mov [0x400], eax
    hlt
.wrong:
    hlt
text: db "Hello guest os!", 10
length equ $ - text
