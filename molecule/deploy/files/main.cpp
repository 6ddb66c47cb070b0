int serve(char ** argv);

int main(int, char ** argv) {
    return serve(argv);
}
