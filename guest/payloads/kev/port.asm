; Prints with one port write per byte.
%include "kev.inc"
    begin64
    mov esi, text
    mov ecx, length
.next:
    lodsb
    out 0xE9, al
    dec ecx
    jnz .next
    finish
text: db "Hello guest os!", 10
length equ $ - text
