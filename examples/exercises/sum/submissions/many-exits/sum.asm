; Prints the sum, and tells a progress on port 0x80, as a BIOS does.
%include "sum.inc"
    mov cx, 16
progress:
    mov al, cl
    out 0x80, al
    loop progress
    READ_SUM
    PRINT_NUMBER
    PRINT_LINE_END
    hlt
