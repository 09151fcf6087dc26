// Prints a text on port 0xE9, byte by byte.
#include "kev.inc"
    mov esi, offset text
1:  lodsb
    test al, al
    jz 2f
    out 0xe9, al
    jmp 1b
2:  finish
text:
    .asciz "Hello guest os!\n"
