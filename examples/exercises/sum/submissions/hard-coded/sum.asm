; Prints the same number each time.
%include "sum.inc"
    mov ax, 1234
    PRINT_NUMBER
    PRINT_LINE_END
    hlt
