; Prints through the MMIO printer: writes address, length and doorbell, then checks the result.
%include "kev.inc"
%macro print 2                  ; text, length
    mov qword [rbx], %1
    mov qword [rbx + 8], %2
    mov byte [rbx + 0x10], 1
    mov rax, [rbx + 0x10]
    cmp rax, %2
    must_be_equal
%endmacro
    begin64
    mov ebx, PRINTER
    print text, length
    print more, more_length
    finish
.wrong:
    hlt
text: db "Hello guest os!", 10
length equ $ - text
more: db "Hello mmio!"
more_length equ $ - more
