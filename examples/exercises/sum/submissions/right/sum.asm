; Prints the sum.
%include "sum.inc"
    READ_SUM
    PRINT_NUMBER
    PRINT_LINE_END
    hlt
