; Loses the upper half of the sum.
%include "sum.inc"
    READ_SUM
    mov ah, 0
    PRINT_NUMBER
    PRINT_LINE_END
    hlt
