; Moves 64 Ki elements with one rep insb, and 1 Ki with one rep outsb, which many hosts split into one exit per element.
%include "kev.inc"
    begin64
    mov edx, FIFO
    mov edi, 0x20000
    mov ecx, 0x10000
    rep insb
    cmp edi, 0x30000
    must_be_equal
    mov esi, 0x20000
    mov ecx, 0x400
    rep outsb
    cmp esi, 0x20400
    must_be_equal
    finish
.wrong:
    hlt
