; Prints with one hypercall, and checks its result.
%include "kev.inc"
    begin64
    mov edi, text
    mov esi, length
    hypercall PRINT
    cmp rax, length
    must_be_equal
    finish
.wrong:
    hlt
text: db "Hello guest os!", 10
length equ $ - text
