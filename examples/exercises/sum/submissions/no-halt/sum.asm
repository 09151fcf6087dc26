; Forgets the end: the processor runs on through the memory after the program.
%include "sum.inc"
    READ_SUM
    PRINT_NUMBER
    PRINT_LINE_END
    ud2
