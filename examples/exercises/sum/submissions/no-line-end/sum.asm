; Forgets the end of the line.
%include "sum.inc"
    READ_SUM
    PRINT_NUMBER
    hlt
