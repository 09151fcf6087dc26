; Takes a sum of 32768 or more for a negative number.
%include "sum.inc"
    READ_SUM
    test ax, ax
    jns positive
    neg ax
    push ax
    mov al, '-'
    out 0xe9, al
    pop ax
positive:
    PRINT_NUMBER
    PRINT_LINE_END
    hlt
