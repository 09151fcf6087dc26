; 64 Ki elements with one rep insb, and as many with one rep outsb.
%include "kev.inc"
    begin64
    mov edx, FIFO
    mov edi, 0x20000
    mov ecx, 0x10000
    rep insb
    cmp edi, 0x30000
    must_be_equal
    mov esi, 0x20000
    mov ecx, 0x10000
    rep outsb
    cmp esi, 0x30000
    must_be_equal
    finish
.wrong:
    hlt
