// Chapter 18: a guest in long mode. It prints 20 lines, each with a letter and the text at 0x8000: "a: text", "b: text", ...
//
// The VMM prints a block of memory with two writes of 32 bits: its address to port 0x30, and then its length to port 0x34.
.intel_syntax noprefix
.code64
.globl _start
_start:
    // RBX is the letter. RDI is where the next byte goes in the buffer.
    mov ebx, 'a'
    mov edi, 0x20000
line:
    mov al, bl
    call put
    mov al, ':'
    call put
    mov al, ' '
    call put
    mov esi, 0x8000
next:
    mov al, [rsi]
    inc rsi
    test al, al
    jz end_of_line
    call put
    jmp next
end_of_line:
    mov al, '\n'
    call put
    inc ebx
    cmp ebx, 'a' + 20
    jne line
    //{
    // The buffer is complete: print it.
    mov eax, 0x20000
    out 0x30, eax
    mov eax, edi
    sub eax, 0x20000
    out 0x34, eax
    //= // TODO 3: Print the buffer from 0x20000 to RDI with one write to port 0x30 and one to port 0x34.
    //}
    hlt

// Prints the byte in AL.
put:
    //{
    mov [rdi], al
    inc rdi
    //= // TODO 2: This is an exit for each byte. Put the byte into the buffer instead: at RDI, which then moves on by 1.
    //= out 0xe9, al
    //}
    ret
