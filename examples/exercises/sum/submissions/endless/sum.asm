; Prints the sum, and never ends.
%include "sum.inc"
    READ_SUM
    PRINT_NUMBER
    PRINT_LINE_END
    jmp $
